-- What was kept by members that are no more. It comes after books.

-- Field and row of each entry of a hash.
local function each(key)
  local all = call('HGETALL', key)
  local place = -1
  return function()
    place = place + 2
    return all[place], all[place] and read(all[place + 1])
  end
end

-- Takes from members what they kept for themselves. ``opened`` gives the row of a run, to be written after it.
local function drop(gone, opened, all_carves, all_claims)
  for field, carve in all_carves do
    if gone[carve[1]] then
      call('HDEL', carves, field)
      add(opened(string.match(field, '^(.*)/'))[SUMS], CARVED, -carve[2])
    end
  end
  for field in all_claims do
    local its, member = string.match(field, '^(.*)/(.*)$')
    if gone[member] then
      call('HDEL', claims, field)
      local run = opened(its)
      run[CLAIMS] = math.max(0, run[CLAIMS] - 1)  -- those of books that were evicted were not counted
    end
  end
end

-- Does something with rows of runs, and writes them. What is left of a run that is gone counts nowhere.
local function with_runs(work)
  local opened = {}
  work(function(its)
    opened[its] = opened[its] or row(books, 'run/' .. its)
      or {false, false, false, 0, 0, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}
    return opened[its]
  end)
  for its, run in pairs(opened) do
    if run[EPOCH] then
      call('HSET', books, 'run/' .. its, pack(run))
    end
  end
end

-- Those whose lease has run out; one that ends too late, because the clock was set back, is cut.
local function gone_members()
  local gone = {}
  for member, its in each(members) do
    if its[1] <= now then
      gone[member] = true
    elseif its[1] > now + its[2] then
      put(members, member, {now + its[2], its[2]})
    end
  end
  return gone
end

-- Books what those held whose lease has run out, and removes what was settled long ago by whoever had lost it.
local function lapse()
  local gone = gone_members()
  if not next(gone) then
    return
  end
  local all_holds, all_carves, all_claims = each(holds), each(carves), each(claims)
  with_runs(function(opened)
    for field, hold in all_holds do
      local state, member, amount, acts_at = unpack(hold)
      if state == 'open' and gone[member] then
        local sums = opened(string.match(field, '^(.*)/'))[SUMS]
        hold[1] = 'lapsed'
        call('HSET', holds, field, pack(hold))
        add(sums, HELD, -amount)
        add(sums, IN_FLIGHT, -1)
        add(sums, UNKNOWN, amount)
        add(sums, CALLS, 1)
      elseif state ~= 'open' and acts_at < now - kept / 1000 then
        call('HDEL', holds, field)
      end
    end
    drop(gone, opened, all_carves, all_claims)
  end)
  for member in pairs(gone) do
    call('HDEL', members, member)
    call('HDEL', books, 'told/' .. member)
  end
end
