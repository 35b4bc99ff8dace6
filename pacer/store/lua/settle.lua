-- after books, entry

local PLACES = {
  spent = 1, unknown = 2, held = 3, carved = 4, input = 5, output = 6, cached = 7, written = 8, reasoning = 9,
  estimated = 10, calls = 11, in_flight = 12,
}
local id, _, booked, gives_back, reserve, returned, is_held = unpack(asked)
local sums = run[SUMS]
for sum, amount in pairs(booked) do
  if not PLACES[sum] or amount < 0 or sums[PLACES[sum]] + amount > 9e18 then  -- below 0: it had more than 63 bits
    return redis.error_reply('SPOILT ' .. books .. ' cannot take ' .. amount .. ' at ' .. name .. '/' .. sum)
  end
end

local field = name .. '/' .. id
local hold = row(holds, field)
local state = hold and hold[1]
if state == 'tomb' then
  return tell({})
elseif not hold and is_held then
  return tell({'missing'})
end
local carve = returned ~= 0 and row(carves, name .. '/' .. reserve)

if hold then
  call('HDEL', holds, field)
else
  put(holds, field, {'tomb', me, 0, now, 0, ''})
end
if state == 'open' then
  add(sums, HELD, -hold[3])
  add(sums, IN_FLIGHT, -1)
elseif state == 'lapsed' then
  add(sums, UNKNOWN, -hold[3])
  add(sums, CALLS, -1)
end
for sum, amount in pairs(booked) do
  add(sums, PLACES[sum], amount)
end
-- Who gives up before its time may have come after those who wait: they never waited for what it took.
local was_due = not hold or hold[4] <= now or next(booked) ~= nil
for _, rate in ipairs(rates) do
  local given = gives_back[rate[KIND]]
  if given and (hold or given < 0) then
    rate[LEVEL] = math.min(rate[BURST], rate[LEVEL] + given)
    rate[REFUNDS] = rate[REFUNDS] + (was_due and given or 0)
    is_pacer_changed = true
  end
end
if carve then
  put(carves, name .. '/' .. reserve, {carve[1], carve[2] + returned})
  add(sums, CARVED, returned)
end
return tell({}, true)
