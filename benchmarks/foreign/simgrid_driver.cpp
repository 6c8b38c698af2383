// Runs flows on links in SimGrid and writes when each flow ends. Usage: simgrid_driver PROBLEM ENDS [SimGrid's own options].
//
// PROBLEM, little-endian: int64 gpus, links, flows, hops, changes; double capacity[links]; double bytes[flows], start[flows],
// cap[flows] (0: none), weight[flows] (0: all alike); int32 route[flows][hops] (-1: no link), source[flows], destination[flows];
// double at[changes]; int32 link[changes]; double value[changes]. Flows come in order of start, changes in order of time.
// ENDS: double[flows]. Standard output: one line of JSON with the seconds of the run phase alone, on the
// clock and of the processor.
//
// SimGrid's CM02 model shares in proportion to 1 / latency, so a weight w becomes a link of latency 1 / w that nobody else uses, in front of
// the route; the flow then starts 1 / w late, which whoever writes the problem takes off its start. A cap is the bandwidth of that link.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <map>
#include <simgrid/s4u.hpp>
#include <simgrid/version.h>
#include <string>
#include <sys/resource.h>
#include <utility>
#include <vector>

namespace sg = simgrid::s4u;
using Clock = std::chrono::steady_clock;

template <typename T> static std::vector<T> take(FILE* file, size_t count)
{
  std::vector<T> values(count);
  if (fread(values.data(), sizeof(T), count, file) != count) {
    fprintf(stderr, "the problem file ends too early\n");
    exit(1);
  }
  return values;
}

static double since(Clock::time_point begin)
{
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

int main(int argc, char** argv)
{
  sg::Engine engine(&argc, argv); // takes its own options out of argv
  if (argc < 3)
    return 1;
  FILE* file = fopen(argv[1], "rb");
  if (file == nullptr)
    return 1;
  const auto head = take<int64_t>(file, 5);
  const int64_t gpus = head[0], links = head[1], flows = head[2], hops = head[3], changes = head[4];
  const auto capacity = take<double>(file, links);
  const auto bytes = take<double>(file, flows), start = take<double>(file, flows), cap = take<double>(file, flows);
  const auto weight = take<double>(file, flows);
  const auto route = take<int32_t>(file, flows * hops), source = take<int32_t>(file, flows), destination = take<int32_t>(file, flows);
  const auto at = take<double>(file, changes);
  const auto changed = take<int32_t>(file, changes);
  const auto value = take<double>(file, changes);
  fclose(file);

#if SIMGRID_VERSION >= 40000
  auto* zone = engine.get_netzone_root()->add_netzone_full("zone");
  auto host = [&](const std::string& name) { return zone->add_host(name, 1e9); };
  auto link = [&](const std::string& name, double bandwidth) { return zone->add_link(name, bandwidth); };
  auto actor = [&](const std::string& name, sg::Host* where, const std::function<void()>& code) { where->add_actor(name, code); };
#else
  auto* zone = sg::create_full_zone("zone");
  auto host = [&](const std::string& name) { return zone->create_host(name, 1e9); };
  auto link = [&](const std::string& name, double bandwidth) { return zone->create_link(name, bandwidth); };
  auto actor = [&](const std::string& name, sg::Host* where, const std::function<void()>& code) { sg::Actor::create(name, where, code); };
#endif
  std::vector<sg::Host*> ends;
  for (int64_t i = 0; i < gpus; i++)
    ends.push_back(host("gpu" + std::to_string(i)));
  std::vector<sg::Link*> wires;
  for (int64_t k = 0; k < links; k++) {
    wires.push_back(link("link" + std::to_string(k), capacity[k]));
    wires.back()->set_latency(0.0)->seal();
  }
  std::map<std::pair<int32_t, int32_t>, int64_t> known;
  for (int64_t f = 0; f < flows; f++) {
    if (!known.emplace(std::make_pair(source[f], destination[f]), f).second)
      continue;
    std::vector<sg::LinkInRoute> path;
    if (weight[f] > 0 || cap[f] > 0) {
      auto* own = link("own" + std::to_string(f), cap[f] > 0 ? cap[f] : 1e15);
      own->set_latency(weight[f] > 0 ? 1.0 / weight[f] : 0.0)->seal();
      path.emplace_back(own);
    }
    for (int64_t h = 0; h < hops; h++)
      if (route[f * hops + h] >= 0)
        path.emplace_back(wires[route[f * hops + h]]);
#if SIMGRID_VERSION >= 40000
    zone->add_route(ends[source[f]], ends[destination[f]], path, false);
#else
    zone->add_route(ends[source[f]]->get_netpoint(), ends[destination[f]]->get_netpoint(), nullptr, nullptr, path, false);
#endif
  }
  zone->seal();

  std::vector<sg::CommPtr> sent(flows);
  actor("sender", ends[0], [&]() {
    for (int64_t f = 0; f < flows; f++) {
      if (start[f] > sg::Engine::get_clock())
        sg::this_actor::sleep_until(start[f]);
      sent[f] = sg::Comm::sendto_async(ends[source[f]], ends[destination[f]], static_cast<uint64_t>(bytes[f]));
    }
    for (auto& one : sent)
      one->wait();
  });
  if (changes > 0)
    actor("operator", ends[0], [&]() {
      for (int64_t c = 0; c < changes; c++) {
        if (at[c] > sg::Engine::get_clock())
          sg::this_actor::sleep_until(at[c]);
        wires[changed[c]]->set_bandwidth(value[c]);
      }
    });
  const auto begin = Clock::now();
  const std::clock_t worked = std::clock();
  engine.run();
  const double cpu = static_cast<double>(std::clock() - worked) / CLOCKS_PER_SEC;
  const double seconds = since(begin);

  std::vector<double> finished(flows);
  for (int64_t f = 0; f < flows; f++)
    finished[f] = sent[f]->get_finish_time();
  FILE* out = fopen(argv[2], "wb");
  if (out == nullptr || fwrite(finished.data(), sizeof(double), flows, out) != static_cast<size_t>(flows) || fclose(out) != 0)
    return 1;
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  int major, minor, patch;
  sg_version_get(&major, &minor, &patch);
  printf("{\"version\": \"%d.%d.%d\", \"run_s\": %.9g, \"cpu_s\": %.9g, \"memory\": %ld}\n", major, minor, patch, seconds, cpu,
         used.ru_maxrss * 1024L);
  return 0;
}
