-- What every entry begins with, the pacer, and the run if it is of one; and what it ends with. ``asked`` is the entry,
-- its fields in order. It comes after books.

local texts = call('HMGET', books, 'pacer', 'run/' .. name)
if not texts[1] then
  return redis.error_reply('FORGOTTEN the pacer')
end
local pacer = read(texts[1])
local run, fault
if name ~= '' then
  run, fault = open_run(name, texts[2])
  if fault then
    return fault
  end
end

local rates, is_pacer_changed = pacer[RATES], refill(pacer)
if now < lived_at or now - lived_at >= lease / 6 then
  live()
end

-- Writes what was changed. The answer: the verdict, and where it is asked for, how the pacer and all runs of the
-- exchange stand; put together of rows that are packed already.
local function tell(verdict, is_run_changed)
  local of_pacer = (tells or is_pacer_changed) and pack(pacer)
  local of_run = run and (tells or is_run_changed) and pack(run) or '\192'
  if is_run_changed and is_pacer_changed then
    call('HSET', books, 'pacer', of_pacer, 'run/' .. name, of_run)
  elseif is_run_changed then
    call('HSET', books, 'run/' .. name, of_run)
  elseif is_pacer_changed then
    call('HSET', books, 'pacer', of_pacer)
  end
  if not tells then
    return pack({verdict})
  end
  local others = {}
  for its in pairs(epochs) do
    if its ~= name then
      local other
      other, fault = open_run(its, call('HGET', books, 'run/' .. its))
      if fault then
        return fault
      end
      others[#others + 1] = {its, ahead(its, other), other}
    end
  end
  return '\150' .. pack(verdict, lived_at, others, run and ahead(name, run) or 0) .. of_pacer .. of_run
end
