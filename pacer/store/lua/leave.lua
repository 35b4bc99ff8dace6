drop({[who.me] = true})
local lease = string.match(redis.call('HGET', members, who.me) or '', '|(.*)$')
if lease then
  put(members, who.me, spell(now) .. '|' .. lease)
end
return '{}'
