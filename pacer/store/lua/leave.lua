-- after books, lapse, whole

with_runs(function(opened)
  drop({[me] = true}, opened, each(carves), each(claims))
end)
local its = row(members, me)
if its then
  put(members, me, {now, its[2]})
end
return ''
