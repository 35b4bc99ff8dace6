-- after books, lapse, entry, claim

local id, _, worst, least, takes, patience, room, starts, reserve = unpack(asked, 1, 9)
local field, sums = name .. '/' .. id, run[SUMS]
local known = row(holds, field)
if known then  -- a tombstone, too: what was booked already must not be held for ever now
  local _, _, amount, acts_at, seconds, setting = unpack(known)
  return tell({'held', amount, math.min(math.max(0, acts_at - now), seconds), setting})
end
if run[PAUSED] or pacer[PAUSED] then
  return tell({'short'})
end

-- ---------------------------------------------------------------- the ceiling

local amount = worst
local extra, carved = 0, {}

local function is_short()
  local left = run[CEILING] - sums[SPENT] - sums[UNKNOWN] - sums[CARVED]
  amount = math.min(worst, left - extra)
  return amount < least or math.max(amount + extra, room) > left - sums[HELD] - ahead(name, run)
end

if reserve == '' then
  for _, carve in ipairs(starts) do
    if call('HEXISTS', carves, name .. '/' .. carve.id) == 0 then
      extra = extra + carve.amount
      carved[#carved + 1] = carve
    end
  end
  if run[CEILING] and is_short() then
    lapse()
    run = row(books, 'run/' .. name)
    sums = run[SUMS]
    if is_short() then
      claim(math.max(least + extra, room))
      return tell({'short'}, true)
    end
  end
end

-- ---------------------------------------------------------------- the rates

local seconds, setting = 0, ''
for _, rate in ipairs(rates) do
  local taken = takes[rate[KIND]]
  if taken then
    local short = math.min(taken, rate[BURST]) - rate[LEVEL]
    local wait = short > 1e-6 and short * rate[PER] / rate[AMOUNT] or 0
    if wait > seconds then
      seconds, setting = wait, rate[SETTING]
    end
  end
end
if patience and seconds > patience then
  return tell({'late', setting, seconds})
end

-- ---------------------------------------------------------------- all of it

for _, rate in ipairs(rates) do
  local taken = takes[rate[KIND]]
  if taken then
    rate[LEVEL] = rate[LEVEL] - taken
    is_pacer_changed = true
  end
end
local paying = reserve ~= '' and row(carves, name .. '/' .. reserve)
withdraw()
call('HSET', holds, field, pack({'open', me, amount, now + seconds, seconds, setting}))
if sums[IN_FLIGHT] == 0 then  -- it may be the first of all, and the key new
  call('PEXPIRE', holds, kept)
end
if paying then
  local taken = math.min(worst, paying[2])
  put(carves, name .. '/' .. reserve, {paying[1], paying[2] - taken})
  add(sums, CARVED, -taken)
end
for _, carve in ipairs(carved) do
  put(carves, name .. '/' .. carve.id, {me, carve.amount})
  add(sums, CARVED, carve.amount)
end
add(sums, HELD, amount)
add(sums, IN_FLIGHT, 1)
return tell({'held', amount, seconds, setting}, true)
