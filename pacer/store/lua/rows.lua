-- after books, lapse, whole

lapse()
clear_out()
local pacer = row(books, 'pacer')
if not pacer then
  return ''  -- removed since its name was read
end
local found, told = {}, {}
local in_use = call('ZRANGE', runs, 0, -1, 'WITHSCORES')
for place = 1, #in_use, 2 do
  local its = in_use[place]
  local text = call('HGET', books, 'run/' .. its)
  if text then
    local run, fault = open_run(its, text)
    if fault then
      return fault
    end
    found[#found + 1] = {its, ahead(its, run), run, in_use[place + 1]}
  end
end
for member in each(members) do
  local status = call('HGET', books, 'told/' .. member)
  if status and status ~= '' then
    told[#told + 1] = status
  end
end
refill(pacer)
return pack({pacer, found, told})
