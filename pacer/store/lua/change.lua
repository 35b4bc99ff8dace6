-- after books, rates, entry

if asked.ceiling ~= nil then
  run[CEILING] = asked.ceiling
end
if asked.paused ~= nil then
  (run or pacer)[PAUSED] = asked.paused
end
if asked.limits then
  local others = rates_of(asked.limits, rates)
  if pack(others) ~= pack(rates) then
    pacer[RATES], pacer[REVISION] = others, pacer[REVISION] + 1
  end
end
is_pacer_changed = true
return tell({}, run ~= nil)
