clear_out(asked.run)

if redis.call('HEXISTS', books, '/limits') == 0 then
  redis.call('HSET', books, '/limits', asked.limits, '/paused', '0', '/revision', '0')
  for _, limit in ipairs(cjson.decode(asked.limits)) do
    fill(limit, limit.burst)
  end
end
if redis.call('HEXISTS', books, asked.run .. '/epoch') == 0 then
  redis.call('HSET', books, asked.run .. '/epoch', asked.epoch, asked.run .. '/ceiling', asked.ceiling,
    asked.run .. '/paused', '0')
  for _, sum in ipairs(SUMS) do
    redis.call('HSET', books, asked.run .. '/' .. sum, '0')
  end
end
live()
redis.call('ZADD', runs, spell(now), asked.run)
keep_all()

local limits, paused, revision, epoch = unpack(redis.call('HMGET', books, '/limits', '/paused', '/revision',
  asked.run .. '/epoch'))
local found, fault = read(asked.run, epoch)
if fault then
  return fault
end
return cjson.encode({limits = limits, paused = paused, revision = revision, epoch = epoch, run = show(found)})
