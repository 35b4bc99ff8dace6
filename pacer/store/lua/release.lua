local _, fault = read(asked.run, who.epochs[asked.run])
if fault then
  return fault
end
live_on()
for _, id in ipairs(asked.ids) do
  local field = asked.run .. '/' .. id
  local amount = string.match(redis.call('HGET', carves, field) or '', '|(.*)$')
  if amount then
    redis.call('HDEL', carves, field)
    add(asked.run, 'carved', minus(amount))
  end
end
return tell()
