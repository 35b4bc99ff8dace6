-- after books, lapse, whole

live()
call('HSET', books, 'told/' .. me, asked)
lapse()
for its in pairs(epochs) do
  local _, fault = open_run(its, call('HGET', books, 'run/' .. its))
  if not fault then
    call('ZADD', runs, now, its)
  end
end
return pack(lived_at)
