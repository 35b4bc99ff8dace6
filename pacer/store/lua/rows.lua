lapse()
clear_out()
local limits, fault = rates()
if fault then
  return '{}'  -- removed since its name was read
end
local all = {limits = redis.call('HGET', books, '/limits'), levels = {}, runs = {}, members = {}}
for _, limit in ipairs(limits) do
  all.levels[limit.kind] = spell(limit.level)
end
local used = redis.call('ZRANGE', runs, 0, -1, 'WITHSCORES')
for place = 1, #used, 2 do
  local run = used[place]
  local found, missing = read(run, redis.call('HGET', books, run .. '/epoch'))
  if missing then
    return missing
  end
  all.runs[run] = show(found)
  all.runs[run].used_at = used[place + 1]
end
for field, value in each(members) do
  local member = string.match(field, '^(.*)/status$')
  if member and value ~= '' then
    all.members[member] = value
  end
end
return cjson.encode(all)
