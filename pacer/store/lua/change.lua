local limits, fault = rates()
if fault then
  return fault
end
local _
if asked.run ~= '' then
  _, fault = read(asked.run, who.epochs[asked.run])
  if fault then
    return fault
  end
end
live_on()

if asked.ceiling ~= nil then
  put(books, asked.run .. '/ceiling', asked.ceiling == cjson.null and '' or asked.ceiling)
end
if asked.paused ~= nil then
  put(books, asked.run .. '/paused', asked.paused and '1' or '0')
end
if asked.limits and asked.limits ~= redis.call('HGET', books, '/limits') then
  local before = {}
  for _, limit in ipairs(limits) do
    before[limit.kind] = limit.level
    redis.call('HDEL', books, '/level/' .. limit.kind)
  end
  put(books, '/limits', asked.limits)
  for _, limit in ipairs(cjson.decode(asked.limits)) do
    fill(limit, before[limit.kind] or limit.burst)
  end
  redis.call('HINCRBY', books, '/revision', 1)
end
return tell()
