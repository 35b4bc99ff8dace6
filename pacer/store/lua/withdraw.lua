local _, fault = read(asked.run, who.epochs[asked.run])
if fault then
  return fault
end
live_on()
redis.call('HDEL', claims, asked.run .. '/' .. who.me)
return tell()
