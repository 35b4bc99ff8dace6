-- after books, entry, claim

local needs, sums = asked[2], run and run[SUMS]
local is_short = needs > 0 and run[CEILING]
  and needs > run[CEILING] - sums[SPENT] - sums[UNKNOWN] - sums[CARVED] - sums[HELD] - ahead(name, run)
if is_short then
  claim(needs)
end
return tell({}, is_short)
