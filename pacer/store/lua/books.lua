-- The books of one pacer, as every script here finds them; it stands in front of each of them.
--
-- KEYS: books   fields of runs "<run>/epoch", "/ceiling" ("" is none), "/paused", "/number" (the last claim's) and one
--               for each sum; of the pacer itself "/limits" (JSON), "/paused", "/revision", "/level/<kind>"
--       holds   "<run>/<id>" -> state|member|amount|acts_at|seconds|limit     state: open, lapsed or tomb
--       carves  "<run>/<id>" -> member|amount
--       members member -> deadline|lease, "<member>/status" -> JSON
--       claims  "<run>/<member>" -> number|amount
--       runs    sorted by when they were last used
-- ARGV: who asks (JSON), what (JSON), whether to tell how things stand ("1").
-- Amounts come as text and are added up by HINCRBY: a number of Lua has 53 bits.

local books, holds, carves, members, claims, runs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local SUMS = {
  'spent', 'unknown', 'held', 'carved', 'input', 'output', 'cached', 'written', 'reasoning', 'estimated', 'calls',
  'in_flight',
}

for place, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= (place == 6 and 'zset' or 'hash') then
    return redis.error_reply('SPOILT ' .. key .. ' is a ' .. kind .. ' that is none of ours')
  end
end

local who = cjson.decode(ARGV[1])
local asked = cjson.decode(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function spell(number)
  if number == math.floor(number) and math.abs(number) < 2 ^ 53 then
    return string.format('%.0f', number + 0)
  end
  return string.format('%.17g', number)
end

local function minus(amount)
  if amount == '0' then
    return amount
  end
  return string.sub(amount, 1, 1) == '-' and string.sub(amount, 2) or '-' .. amount
end

local function put(key, field, value)
  redis.call('HSET', key, field, value)
  redis.call('PEXPIRE', key, who.kept)
end

local function keep_all()
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, who.kept)
  end
end

local function add(run, sum, amount)
  redis.call('HINCRBY', books, run .. '/' .. sum, amount)
end

-- Field and value of each entry of a hash.
local function each(key)
  local all = redis.call('HGETALL', key)
  local place = -1
  return function()
    place = place + 2
    return all[place], all[place + 1]
  end
end

-- ---------------------------------------------------------------- runs

-- How a run stands, or nothing and the fault: another epoch than who asks knows (if any), or numbers that are none.
local function read(run, epoch)
  local fields = {run .. '/epoch', run .. '/ceiling', run .. '/paused'}
  for _, sum in ipairs(SUMS) do
    fields[#fields + 1] = run .. '/' .. sum
  end
  local got = redis.call('HMGET', books, unpack(fields))
  if not got[1] or epoch ~= '' and got[1] ~= epoch then
    return nil, redis.error_reply('FORGOTTEN run ' .. run)
  end
  local found = {name = run, ceiling = tonumber(got[2]), ceiling_text = got[2], paused = got[3], texts = {}}
  for place, sum in ipairs(SUMS) do
    local text = got[place + 3]
    if not text or not string.find(text, '^%-?%d+$') then
      return nil, redis.error_reply('SPOILT ' .. books .. ' holds no number at ' .. run .. '/' .. sum)
    end
    found[sum] = tonumber(text)
    found.texts[place] = text
  end
  return found
end

local function is_alive(member)
  local deadline = string.match(redis.call('HGET', members, member) or '', '^(.-)|')
  return deadline and tonumber(deadline) > now
end

-- What living members claimed in a run before who asks.
local function ahead(run)
  local mine = string.match(redis.call('HGET', claims, run .. '/' .. who.me) or '', '^(%d+)|')
  local sum = 0
  for field, value in each(claims) do
    local its, member = string.match(field, '^(.*)/(.*)$')
    local number, amount = string.match(value, '^(%d+)|(.*)$')
    if its == run and member ~= who.me and (not mine or tonumber(number) < tonumber(mine)) and is_alive(member) then
      sum = sum + tonumber(amount)
    end
  end
  return sum
end

-- Stands in line for room under the ceiling, if open holds can make it.
local function claim(run, name, need)
  local mine = name .. '/' .. who.me
  if run.ceiling - run.spent - run.unknown - run.carved < need then
    redis.call('HDEL', claims, mine)
    return
  end
  local number = string.match(redis.call('HGET', claims, mine) or '', '^(%d+)|')
  put(claims, mine, (number or redis.call('HINCRBY', books, name .. '/number', 1)) .. '|' .. spell(need))
end

local function forget(run)
  local fields = {run .. '/epoch', run .. '/ceiling', run .. '/paused', run .. '/number'}
  for _, sum in ipairs(SUMS) do
    fields[#fields + 1] = run .. '/' .. sum
  end
  redis.call('HDEL', books, unpack(fields))
  redis.call('ZREM', runs, run)
  for _, key in ipairs({holds, carves, claims}) do
    for field in each(key) do
      if string.match(field, '^(.*)/') == run then
        redis.call('HDEL', key, field)
      end
    end
  end
end

-- Removes runs in which nothing is open and that were not used for long; a hundred at a time, that nobody waits for it.
local function clear_out(but)
  local old = redis.call('ZRANGEBYSCORE', runs, '-inf', spell(now - who.kept / 1000), 'LIMIT', 0, 100)
  for _, run in ipairs(old) do
    local open, carved = unpack(redis.call('HMGET', books, run .. '/in_flight', run .. '/carved'))
    if run ~= but and (open or '0') == '0' and (carved or '0') == '0' then
      forget(run)
    end
  end
end

-- ---------------------------------------------------------------- rates

-- The rates as of now. A stamp that is later than now (the clock was set back) counts as now, and is set so.
local function rates()
  local text = redis.call('HGET', books, '/limits')
  if not text then
    return nil, redis.error_reply('FORGOTTEN the pacer')
  end
  local list = {}
  for _, limit in ipairs(cjson.decode(text)) do
    local field = '/level/' .. limit.kind
    local level, stamp = string.match(redis.call('HGET', books, field) or '', '^(.*)|(.*)$')
    level, stamp = tonumber(level) or limit.burst, tonumber(stamp) or now
    if stamp > now then
      put(books, field, spell(level) .. '|' .. spell(now))
      stamp = now
    end
    limit.per_second = limit.amount / limit.per
    limit.level = math.min(limit.burst, level + (now - stamp) * limit.per_second)
    list[#list + 1] = limit
  end
  return list
end

local function fill(limit, level)
  limit.level = math.min(limit.burst, level)
  put(books, '/level/' .. limit.kind, spell(limit.level) .. '|' .. spell(now))
end

-- ---------------------------------------------------------------- members

local function live()
  put(members, who.me, spell(now + who.lease) .. '|' .. spell(who.lease))
end

-- For a script that has something else to do: no write for each entry.
local function live_on()
  local deadline = string.match(redis.call('HGET', members, who.me) or '', '^(.-)|')
  if not deadline or tonumber(deadline) - now < who.lease * 5 / 6 or tonumber(deadline) - now > who.lease then
    live()
  end
end

local function lapse_hold(field, row)
  local run, member, amount, rest = string.match(field, '^(.*)/'), string.match(row, '^open|(.-)|(.-)|(.*)$')
  redis.call('HSET', holds, field, 'lapsed|' .. member .. '|' .. amount .. '|' .. rest)
  add(run, 'held', minus(amount))
  add(run, 'in_flight', '-1')
  add(run, 'unknown', amount)
  add(run, 'calls', '1')
end

-- Takes from members what they kept for themselves.
local function drop(gone)
  for field, row in each(carves) do
    local member, amount = string.match(row, '^(.*)|(.*)$')
    if gone[member] then
      redis.call('HDEL', carves, field)
      add(string.match(field, '^(.*)/'), 'carved', minus(amount))
    end
  end
  for field in each(claims) do
    if gone[string.match(field, '/(.*)$')] then
      redis.call('HDEL', claims, field)
    end
  end
end

-- Books what those held whose lease has run out, and removes what was settled long ago by whoever had lost it.
local function lapse()
  local gone = {}
  for member, value in each(members) do
    local deadline, lease = string.match(value, '^(.*)|(.*)$')
    if not string.find(member, '/', 1, true) then
      if tonumber(deadline) <= now then
        gone[member] = true
      elseif tonumber(deadline) > now + tonumber(lease) then  -- the clock was set back
        put(members, member, spell(now + tonumber(lease)) .. '|' .. lease)
      end
    end
  end
  if not next(gone) then
    return
  end
  for field, row in each(holds) do
    local state, member, acts_at = string.match(row, '^(%a+)|(.-)|.-|(.-)|')
    if state == 'open' then
      if gone[member] then
        lapse_hold(field, row)
      end
    elseif tonumber(acts_at) < now - who.kept / 1000 then
      redis.call('HDEL', holds, field)
    end
  end
  drop(gone)
  for member in pairs(gone) do
    redis.call('HDEL', members, member, member .. '/status')
  end
end

-- ---------------------------------------------------------------- answers

local function show(found)
  return {
    ceiling = found.ceiling and found.ceiling_text or cjson.null,
    paused = found.paused,
    claimed = spell(ahead(found.name)),
    sums = found.texts,
  }
end

-- The answer: the verdict, and where it is asked for, how all runs of the exchange and the pacer stand.
local function tell(verdict)
  local told = {verdict = verdict}
  if ARGV[3] == '1' then
    local limits, fault = rates()
    if fault then
      return fault
    end
    told.runs, told.levels, told.refunds = {}, {}, {}
    for run, epoch in pairs(who.epochs) do
      local found, missing = read(run, epoch)
      if missing then
        return missing
      end
      told.runs[run] = show(found)
    end
    for _, limit in ipairs(limits) do
      told.levels[limit.kind] = spell(limit.level)
      told.refunds[limit.kind] = redis.call('HGET', books, '/refunds/' .. limit.kind) or '0'
    end
    told.paused, told.revision = unpack(redis.call('HMGET', books, '/paused', '/revision'))
  end
  return cjson.encode(told)
end

