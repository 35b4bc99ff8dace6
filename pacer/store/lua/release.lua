local _, fault = read(asked.run, who.epochs[asked.run])
if fault then
  return fault
end
live_on()
for _, id in ipairs(asked.ids) do
  local run, amount = string.match(redis.call('HGET', carves, id) or '', '^(.*)|.*|(.*)$')
  if run == asked.run then
    redis.call('HDEL', carves, id)
    add(run, 'carved', minus(amount))
  end
end
return tell()
