-- wrk: POST the file WRK_BODY of the type WRK_TYPE, with the header lines WRK_HEADERS, to each of WRK_PATHS in turn; print
-- one line of JSON at the end.
local requests, turn = {}, 0

init = function(args)
  local file = assert(io.open(os.getenv("WRK_BODY"), "rb"))
  local body = file:read("*a")
  file:close()
  wrk.method = "POST"
  wrk.headers["Content-Type"] = os.getenv("WRK_TYPE")
  for name, value in (os.getenv("WRK_HEADERS") or ""):gmatch("([^:\n]+): ([^\n]*)") do
    wrk.headers[name] = value
  end
  for path in os.getenv("WRK_PATHS"):gmatch("%S+") do
    requests[#requests + 1] = wrk.format("POST", path, nil, body)
  end
end

request = function()
  turn = turn % #requests + 1
  return requests[turn]
end

done = function(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "p50": %f, "p90": %f, "p99": %f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e6, latency:percentile(90) / 1e6, latency:percentile(99) / 1e6,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
