-- What concerns a pacer as a whole. It comes after books.

for place, key in ipairs(KEYS) do
  local kind = call('TYPE', key).ok
  if kind ~= 'none' and kind ~= (key == runs and 'zset' or 'hash') then
    return redis.error_reply('SPOILT ' .. key .. ' is a ' .. kind .. ' that is none of ours')
  end
end

-- Removes the fields of a hash that begin so; all, if they may begin with anything.
local function remove(key, beginning)
  for place, field in ipairs(call('HGETALL', key)) do
    if place % 2 == 1 and string.sub(field, 1, #beginning) == beginning then
      call('HDEL', key, field)
    end
  end
end

local function forget(its)
  call('HDEL', books, 'run/' .. its)
  call('ZREM', runs, its)
  for _, key in ipairs({holds, carves, claims}) do
    remove(key, its .. '/')
  end
  if #call('ZRANGE', runs, 0, 0) == 0 then  -- the pacer goes with its last run
    remove(books, '')
  end
end

-- Removes runs in which nothing is open and that were not used for long; a hundred at a time, that nobody waits for it.
local function clear_out(but)
  local old = call('ZRANGEBYSCORE', runs, '-inf', now - kept / 1000, 'LIMIT', 0, 100)
  for _, its in ipairs(old) do
    local run = row(books, 'run/' .. its)
    if its ~= but and (not run or run[SUMS][IN_FLIGHT] == 0 and run[SUMS][CARVED] == 0) then
      forget(its)
    end
  end
end
