local run, fault = read(asked.run, who.epochs[asked.run])
if fault then
  return fault
end
local limits
limits, fault = rates()
if fault then
  return fault
end

local field = asked.run .. '/' .. asked.id
local known = redis.call('HGET', holds, field)
if known then  -- a tombstone, too: what was booked already must not be held for ever now
  local amount, acts_at, seconds, setting = string.match(known, '^%a+|.-|(.-)|(.-)|(.-)|(.*)$')
  local left = math.max(0, tonumber(acts_at) - now)
  return tell({'held', amount, spell(math.min(left, tonumber(seconds))), setting})
end
live_on()
if run.paused == '1' or redis.call('HGET', books, '/paused') == '1' then
  return tell({'short'})
end

-- ---------------------------------------------------------------- the ceiling

local amount = asked.worst
local extra, carved = 0, {}

local function is_short()
  local left = run.ceiling - run.spent - run.unknown - run.carved
  local fits = math.min(tonumber(asked.worst), left - extra)
  amount = fits == tonumber(asked.worst) and asked.worst or spell(fits)
  return fits < tonumber(asked.least)
    or math.max(fits + extra, tonumber(asked.room)) > left - run.held - ahead(asked.run)
end

if asked.reserve == '' then
  for _, carve in ipairs(asked.carves) do
    if redis.call('HEXISTS', carves, asked.run .. '/' .. carve.id) == 0 then
      extra = extra + tonumber(carve.amount)
      carved[#carved + 1] = carve
    end
  end
  if run.ceiling and is_short() then
    lapse()
    run = read(asked.run, who.epochs[asked.run])
    if is_short() then
      claim(run, asked.run, math.max(tonumber(asked.least) + extra, tonumber(asked.room)))
      return tell({'short'})
    end
  end
end

-- ---------------------------------------------------------------- the rates

local seconds, setting = 0, ''
for _, limit in ipairs(limits) do
  if asked.takes[limit.kind] then
    local short = math.min(tonumber(asked.takes[limit.kind]), limit.burst) - limit.level
    local wait = short > 1e-6 and short / limit.per_second or 0
    if wait > seconds then
      seconds, setting = wait, limit.setting
    end
  end
end
if asked.patience ~= cjson.null and seconds > asked.patience then
  return tell({'late', setting, spell(seconds)})
end

-- ---------------------------------------------------------------- all of it

for _, limit in ipairs(limits) do
  if asked.takes[limit.kind] then
    fill(limit, limit.level - tonumber(asked.takes[limit.kind]))
  end
end
put(holds, field, table.concat({'open', who.me, amount, spell(now + seconds), spell(seconds), setting}, '|'))
add(asked.run, 'held', amount)
add(asked.run, 'in_flight', '1')
if asked.reserve ~= '' then
  local reserve = asked.run .. '/' .. asked.reserve
  local member, left = string.match(redis.call('HGET', carves, reserve) or '', '^(.*)|(.*)$')
  if member then
    local used = math.min(tonumber(asked.worst), tonumber(left))
    put(carves, reserve, member .. '|' .. spell(tonumber(left) - used))
    add(asked.run, 'carved', spell(-used))
  end
end
for _, carve in ipairs(carved) do
  put(carves, asked.run .. '/' .. carve.id, who.me .. '|' .. carve.amount)
  add(asked.run, 'carved', carve.amount)
end
redis.call('HDEL', claims, asked.run .. '/' .. who.me)
return tell({'held', amount, spell(seconds), setting})
