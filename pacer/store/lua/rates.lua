-- Rates as limits give them. It comes after books.

-- They are as full as those of their kind ``before`` were.
local function rates_of(limits, before)
  local rates = {}
  for place, limit in ipairs(limits) do
    local level, refunds = limit.burst, 0
    for _, rate in ipairs(before) do
      if rate[KIND] == limit.kind then
        level, refunds = math.min(rate[LEVEL], limit.burst), rate[REFUNDS]
      end
    end
    rates[place] = {limit.kind, limit.setting, limit.amount, limit.per, limit.burst, level, refunds}
  end
  return rates
end
