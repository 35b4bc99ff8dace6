-- The books of one pacer, as every script here finds them. A script begins with a line that names what it comes after.
--
-- KEYS: books   "run/<run>" -> {epoch, ceiling (false is none), paused, number of the last claim, claims that stand,
--               {sums}}, "pacer" -> {stamp, revision, paused, {rates}}, "told/<member>" -> JSON
--       holds   "<run>/<id>" -> {state, member, amount, acts_at, seconds, setting}    state: open, lapsed or tomb
--       carves  "<run>/<id>" -> {member, amount}
--       members member -> {deadline, lease}
--       claims  "<run>/<member>" -> {number, amount}
--       runs    sorted by when they were last used
-- ARGV: {who asks, lease, how long keys are kept (ms), when the lease was prolonged last, whether to tell how things
--       stand, {run = epoch} of all runs that the exchange is about, the run, what is asked}
-- All of it is MessagePack: it costs the server half of what text does, and keeps every digit of a number.
-- What a script writes must not fail half way: of each key that it writes to it has read before, or it is the first.

-- Places in the rows of a run, of its sums, of the pacer and of a rate. They are put in as numbers when this is loaded:
-- a local that functions use costs as much as a function, in each call.
local EPOCH = 1
local CEILING = 2
local PAUSED = 3
local NUMBER = 4
local CLAIMS = 5
local SUMS = 6
local SPENT = 1
local UNKNOWN = 2
local HELD = 3
local CARVED = 4
local CALLS = 11
local IN_FLIGHT = 12
local STAMP = 1
local REVISION = 2
local RATES = 4
local KIND = 1
local SETTING = 2
local AMOUNT = 3
local PER = 4
local BURST = 5
local LEVEL = 6
local REFUNDS = 7

local call, pack, read = redis.call, cmsgpack.pack, cmsgpack.unpack
local books, holds, carves, members, claims, runs = unpack(KEYS)
local me, lease, kept, lived_at, tells, epochs, name, asked = unpack(read(ARGV[1]))
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000

local function row(key, field)
  local text = call('HGET', key, field)
  return text and read(text) or nil
end

local function put(key, field, value)
  call('HSET', key, field, pack(value))
  call('PEXPIRE', key, kept)
end

-- A sum with more digits than a number of Lua has is kept as text, and added to by the server.
local function add(sums, place, amount)
  local sum = sums[place]
  local total = sum + amount
  if math.abs(total) >= 2 ^ 53 or type(sum) == 'string' then
    call('HSET', books, 'sum', type(sum) == 'string' and sum or string.format('%.0f', sum))
    call('HINCRBY', books, 'sum', string.format('%.0f', amount))
    sum = call('HGET', books, 'sum')
    call('HDEL', books, 'sum')
    total = math.abs(tonumber(sum)) < 2 ^ 53 and tonumber(sum) or sum
  end
  sums[place] = total
end

-- The run by its row, or the fault: it is gone, or another one than who asks knows (if any).
local function open_run(its, text)
  local run, epoch = text and read(text), epochs[its]
  if text and (type(run) ~= 'table' or #run ~= SUMS) then
    return nil, redis.error_reply('SPOILT ' .. books .. ' holds what is none of ours at run/' .. its)
  elseif not run or epoch and epoch ~= '' and run[EPOCH] ~= epoch then
    return nil, redis.error_reply('FORGOTTEN run ' .. its)
  end
  return run
end

-- What living members claimed in a run before who asks.
local function ahead(its, run)
  local sum = 0
  if run[CLAIMS] > 0 then
    local mine, all = row(claims, its .. '/' .. me), call('HGETALL', claims)
    for place = 1, #all, 2 do
      local whose, member = string.match(all[place], '^(.*)/(.*)$')
      local claim = read(all[place + 1])
      if whose == its and member ~= me and (not mine or claim[1] < mine[1]) then
        local found = row(members, member)
        sum = sum + (found and found[1] > now and claim[2] or 0)
      end
    end
  end
  return sum
end

-- The rates as of now. Whether they have to be written for that: a stamp that is later than now (the clock was set back)
-- counts as now.
local function refill(pacer)
  local passed = now - pacer[STAMP]
  for _, rate in ipairs(pacer[RATES]) do
    rate[LEVEL] = math.min(rate[BURST], rate[LEVEL] + math.max(0, passed) * rate[AMOUNT] / rate[PER])
  end
  pacer[STAMP] = now
  return passed < 0
end

-- Who asks lives; and so do all keys.
local function live()
  call('HSET', members, me, pack({now + lease, lease}))
  for _, key in ipairs(KEYS) do
    call('PEXPIRE', key, kept)
  end
  lived_at = now
end
