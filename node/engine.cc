#include "node/engine.h"

#include <utility>

#include "base/status.h"
#include "base/units.h"
#include "sizing/numa.h"

namespace lamina::node {

Engine::Engine(const Config& config, FileSystem& fs, Host& host, const Clock& clock,
               std::unique_ptr<ClaimsBook> book, std::unique_ptr<NodeLayers> layers)
    : book_(std::move(book)),
      layers_(std::move(layers)),
      owners_(fs, config.paths.state_dir, host),
      balloons_(config.memory, host, clock),
      rounds_(config.memory, *book_, balloons_, owners_.states(), clock, metrics_),
      claims_(*book_, owners_, rounds_, *layers_, metrics_, clock),
      reconciler_(config, fs, host, *book_, owners_, balloons_, rounds_, claims_, *layers_),
      views_(config.memory, *book_, balloons_, claims_, *layers_, metrics_, clock) {}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Open(const Config& config, FileSystem& fs, Host& host,
                                                     const Clock& clock) {
  const uint64_t total =
      config.memory.capacity_bytes != 0 ? config.memory.capacity_bytes : host.MemTotalBytes();
  const uint64_t kept = config.memory.reserve_bytes + config.memory.carve_out_bytes;
  if (total <= kept) {
    return InvalidArgument("memory: reserve and carve-out ({}) leave nothing of {}", FormatBytes(kept),
                           FormatBytes(total));
  }
  sizing::NodeBytes sizes;
  for (const auto& [number, memory] : host.NumaNodes()) sizes[number] = memory.total_bytes;
  // What is kept is of the whole: each NUMA node bears its part of it.
  auto book = std::make_unique<ClaimsBook>(total - kept, sizing::DivideInProportion(total - kept, sizes));
  ASSIGN_OR_RETURN(std::unique_ptr<NodeLayers> layers, NodeLayers::Open(config, fs, *book));
  RETURN_IF_ERROR(book->Restore(fs, config.paths.state_dir + "/claims.journal", host.BootId()));
  return std::unique_ptr<Engine>(new Engine(config, fs, host, clock, std::move(book), std::move(layers)));
}

}  // namespace lamina::node
