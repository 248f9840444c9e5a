-- Commits one batch, or says which check failed. Nothing is written before every check has held and the
-- counter has been incremented, which is the only write that can fail.
--
-- KEYS: two for each group, the hash of its values and the sorted set of its members (all of one slot).
-- ARGV: counter group (0: none), counter member, number of checks, number of reads, then
--       per check: kind, group, member, value; per read: kind, group, member; per write: kind, group, member, value.
--       A group is its place among the pairs of KEYS, from 1.
-- Returns {-1, place of the failed check, {}}, or {0, sequence number, {values read, false where none}}.

-- Whether `a` comes after `b` in byte order. Lua's own `<` follows the server's locale.
local function greater(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return #a > #b
end

local function values(group) return KEYS[2 * group - 1] end
local function members(group) return KEYS[2 * group] end
local function get(group, member) return redis.call('HGET', values(group), member) end

local function put(group, member, value)
  if redis.call('HSET', values(group), member, value) == 1 then
    redis.call('ZADD', members(group), 0, member)
  end
end

local holds = {
  absent = function(group, member) return not get(group, member) end,
  present = function(group, member) return get(group, member) end,
  equals = function(group, member, value) return get(group, member) == value end,
  empty = function(group) return redis.call('EXISTS', values(group)) == 0 end,
}

local answers = {
  value = get,
  first = function(group) return redis.call('ZRANGE', members(group), 0, 0)[1] or false end,
  count = function(group) return tostring(redis.call('ZCARD', members(group))) end,
}

local sequence = 0

local make = {
  put = put,
  number = function(group, member, value) put(group, member, string.format('%016x', sequence) .. value) end,
  ['at number'] = function(group, member, value) put(group, string.format('%016x', sequence) .. member, value) end,
  raise = function(group, member, value)
    local old = get(group, member)
    if not (old and greater(old, value)) then put(group, member, value) end
  end,
  delete = function(group, member)
    redis.call('HDEL', values(group), member)
    redis.call('ZREM', members(group), member)
  end,
}

local counter, checks, reads = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
local at = 5

for check = 0, checks - 1 do
  if not holds[ARGV[at]](tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]) then return {-1, check, {}} end
  at = at + 4
end

local found = {}
for read = 1, reads do
  found[read] = answers[ARGV[at]](tonumber(ARGV[at + 1]), ARGV[at + 2])
  at = at + 3
end

if counter > 0 then
  sequence = redis.call('HINCRBY', values(counter), ARGV[2], 1)
  if sequence == 1 then redis.call('ZADD', members(counter), 0, ARGV[2]) end
end

while at <= #ARGV do
  make[ARGV[at]](tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3])
  at = at + 4
end
return {0, sequence, found}
