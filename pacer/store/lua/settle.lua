local run, fault = read(asked.run, who.epochs[asked.run])
if fault then
  return fault
end
for sum, amount in pairs(asked.booked) do
  if not run[sum] or math.abs(run[sum] + tonumber(amount)) > 9e18 then
    return redis.error_reply('SPOILT ' .. books .. ' cannot take ' .. amount .. ' at ' .. asked.run .. '/' .. sum)
  end
end
local limits
limits, fault = rates()
if fault then
  return fault
end
live_on()

local field = asked.run .. '/' .. asked.id
local row = redis.call('HGET', holds, field)
local state, amount = string.match(row or '', '^(%a+)|.-|(.-)|')
if state == 'tomb' then
  return tell()
elseif not row and asked.is_held then
  return tell({'missing'})
end

if state == 'open' then
  add(asked.run, 'held', minus(amount))
  add(asked.run, 'in_flight', '-1')
elseif state == 'lapsed' then
  add(asked.run, 'unknown', minus(amount))
  add(asked.run, 'calls', '-1')
end
for sum, more in pairs(asked.booked) do
  add(asked.run, sum, more)
end
for _, limit in ipairs(limits) do
  if asked.gives_back[limit.kind] then
    fill(limit, limit.level + tonumber(asked.gives_back[limit.kind]))
    redis.call('HINCRBY', books, '/refunds/' .. limit.kind, asked.gives_back[limit.kind])
  end
end
if asked.returned ~= '0' then
  local reserve = asked.run .. '/' .. asked.reserve
  local member, left = string.match(redis.call('HGET', carves, reserve) or '', '^(.*)|(.*)$')
  if member then
    put(carves, reserve, member .. '|' .. spell(tonumber(left) + tonumber(asked.returned)))
    add(asked.run, 'carved', asked.returned)
  end
end
if row then
  redis.call('HDEL', holds, field)
else
  put(holds, field, table.concat({'tomb', who.me, '0', spell(now), '0', ''}, '|'))
end
return tell()
