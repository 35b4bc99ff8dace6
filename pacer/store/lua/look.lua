local limits, fault = rates()
if fault then
  return fault
end
local run
if asked.run ~= '' then
  run, fault = read(asked.run, who.epochs[asked.run])
  if fault then
    return fault
  end
end
live_on()

local need = tonumber(asked.needs)
if need > 0 and run.ceiling and need > run.ceiling - run.spent - run.unknown - run.carved - run.held - ahead(asked.run) then
  claim(run, asked.run, need)
end
return tell()
