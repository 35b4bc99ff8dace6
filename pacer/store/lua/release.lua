-- after books, entry

for _, id in ipairs(asked[2]) do
  local field = name .. '/' .. id
  local carve = row(carves, field)
  if carve then
    call('HDEL', carves, field)
    add(run[SUMS], CARVED, -carve[2])
  end
end
return tell({}, true)
