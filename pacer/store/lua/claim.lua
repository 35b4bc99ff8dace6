-- The line of those who wait for room under the ceiling. It comes after entry.

local function withdraw()
  if run[CLAIMS] > 0 then
    run[CLAIMS] = run[CLAIMS] - call('HDEL', claims, name .. '/' .. me)
  end
end

-- Stands in line, if open holds can make the room.
local function claim(need)
  local sums = run[SUMS]
  if run[CEILING] - sums[SPENT] - sums[UNKNOWN] - sums[CARVED] < need then
    return withdraw()
  end
  local mine = row(claims, name .. '/' .. me)
  if not mine then
    run[NUMBER], run[CLAIMS] = run[NUMBER] + 1, run[CLAIMS] + 1
    mine = {run[NUMBER]}
  end
  put(claims, name .. '/' .. me, {mine[1], need})
end
