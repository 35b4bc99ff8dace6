live()
put(members, who.me .. '/status', asked.status)
lapse()
for run, epoch in pairs(who.epochs) do
  if redis.call('HGET', books, run .. '/epoch') == epoch then
    redis.call('ZADD', runs, spell(now), run)
  end
end
keep_all()
return '{}'
