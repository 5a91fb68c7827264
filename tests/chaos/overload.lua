-- wrk: each connection POSTs the file WRK_BODY to WRK_PATHS in turn, and waits WRK_DELAY ms on average in between.
-- With far more connections than the server takes images in, the rate hardly depends on how fast it answers.
local requests, turn, pause = {}, 0, tonumber(os.getenv("WRK_DELAY"))

init = function(args)
  math.randomseed(7)
  local file = assert(io.open(os.getenv("WRK_BODY"), "rb"))
  local body = file:read("*a")
  file:close()
  wrk.headers["Content-Type"] = "image/jpeg"
  for path in os.getenv("WRK_PATHS"):gmatch("%S+") do
    requests[#requests + 1] = wrk.format("POST", path, nil, body)
  end
end

-- Times between two requests as those of independent users: exponential.
delay = function()
  return pause > 0 and math.floor(-pause * math.log(1 - math.random()) + 0.5) or 0
end

request = function()
  turn = turn % #requests + 1
  return requests[turn]
end

done = function(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "refused": %d, "broken": %d, "p99": %f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, latency:percentile(99) / 1e6))
end
