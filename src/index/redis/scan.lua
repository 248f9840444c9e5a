-- Lists a group in byte order of its members.
--
-- KEYS: the hash of its values, the sorted set of its members. ARGV: the least member, as ZRANGE BYLEX wants
-- it, and how many at most. Returns members and values by turns.
local members = redis.call('ZRANGE', KEYS[2], ARGV[1], '+', 'BYLEX', 'LIMIT', 0, ARGV[2])
local found = {}
for place, member in ipairs(members) do
  found[2 * place - 1] = member
  found[2 * place] = redis.call('HGET', KEYS[1], member)
end
return found
