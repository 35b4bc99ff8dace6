-- after books, rates, whole

clear_out(name)

local pacer = row(books, 'pacer') or {now, 0, false, rates_of(asked.limits, {})}
local run = row(books, 'run/' .. name)
  or {asked.epoch, asked.ceiling, false, 0, 0, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}
call('HSET', books, 'pacer', pack(pacer), 'run/' .. name, pack(run))
call('ZADD', runs, now, name)
live()
return pack({pacer, {name, ahead(name, run), run}})
