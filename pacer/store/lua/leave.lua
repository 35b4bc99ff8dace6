for id, row in each(carves) do
  local run, member, amount = string.match(row, '^(.*)|(.*)|(.*)$')
  if member == who.me then
    redis.call('HDEL', carves, id)
    add(run, 'carved', minus(amount))
  end
end
for field in each(claims) do
  if string.match(field, '/(.*)$') == who.me then
    redis.call('HDEL', claims, field)
  end
end
local lease = string.match(redis.call('HGET', members, who.me) or '', '|(.*)$')
if lease then
  put(members, who.me, spell(now) .. '|' .. lease)
end
return '{}'
