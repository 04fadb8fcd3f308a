-- What wrk sends: one request, made once. The target is given in full, since a
-- forward proxy takes the absolute form and wrk would write only the path.
-- Arguments: TARGET HOST [NAME VALUE], the last two for the proxy's credential.

local request_bytes

function init(args)
  local headers = { ["Host"] = args[2] }
  if args[3] then headers[args[3]] = args[4] end
  request_bytes = wrk.format("GET", args[1], headers)
end

function request()
  return request_bytes
end

-- One line of JSON, which `run` reads. Times are in microseconds.
function done(summary, latency, _)
  io.write(string.format(
    '{"requests": %d, "bytes": %d, "seconds": %.6f, "read_errors": %d, "errors": %d, "p50_us": %.1f, "p99_us": %.1f}\n',
    summary.requests, summary.bytes, summary.duration / 1e6,
    summary.errors.read,
    summary.errors.connect + summary.errors.write + summary.errors.status + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
