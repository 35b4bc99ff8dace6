local limits, fault = rates()
if fault then
  return fault
end
live_on()
return tell()
