// States for tests: every field set, or everything drawn at random.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "persist/sandbox_state.h"

namespace lamina::persist {

class RandomState {
 public:
  explicit RandomState(uint32_t seed) : random_(seed) {}

  uint64_t Below(uint64_t end) { return random_() % end; }

  SandboxState Make(const std::string& id) {
    SandboxState state;
    state.life_cycle = static_cast<LifeCycle>(Below(4));
    state.created_with_version = 1 + static_cast<int>(Below(kStateVersion));
    state.sandbox_id = id;
    for (std::string* text :
         {&state.pod_name, &state.pod_namespace, &state.pod_uid, &state.bundle, &state.boot_id,
          &state.runtime_dir, &state.netns_path, &state.tap_name, &state.mac}) {
      *text = Text();
    }
    state.vcpus = static_cast<uint32_t>(random_());
    state.has_pod_files = Below(2) == 1;
    state.memory_bytes = random_();
    state.claim_bytes = random_();
    state.claim_generation = random_();
    for (uint64_t i = Below(4); i > 0; --i) state.numa_nodes.push_back(static_cast<uint32_t>(random_()));
    for (ProcessId* process : {&state.shim, &state.vmm, &state.virtiofsd})
      *process = {static_cast<int64_t>(random_()), random_()};
    for (auto* list : {&state.reasons, &state.cgroup_dirs, &state.arenas}) *list = List();
    for (uint64_t i = Below(4); i > 0; --i)
      state.layers.push_back({Text(), Text(), random_(), random_(), Text(), Text(), Text()});
    for (uint64_t i = Below(4); i > 0; --i) state.disks.push_back({Text(), Text()});
    for (uint64_t i = Below(4); i > 0; --i) {
      const std::string name = "c" + std::to_string(i);
      state.containers[name] = {.id = name,
                                .bundle = Text(),
                                .life = static_cast<ContainerLife>(Below(3)),
                                .exit_status = static_cast<uint32_t>(random_()),
                                .exit_unix_nanos = static_cast<int64_t>(random_()),
                                .layer_ids = List(),
                                .mounts = List(),
                                .disks = List(),
                                .devices = List(),
                                .pid = static_cast<uint32_t>(random_()),
                                .stdin_path = Text(),
                                .stdout_path = Text(),
                                .stderr_path = Text(),
                                .terminal = Below(2) == 1,
                                .first_stream = static_cast<uint32_t>(random_())};
    }
    return state;
  }

 private:
  std::string Text() {
    static const std::vector<std::string> parts = {"a",  "/", "..", " ", "\n", "\"",
                                                   "\\", "ü", "名", "0", "{"};
    std::string text;
    for (uint64_t i = Below(8); i > 0; --i) text += parts[Below(parts.size())];
    return text;
  }
  std::vector<std::string> List() {
    std::vector<std::string> list(Below(4));
    for (std::string& text : list) text = Text();
    return list;
  }

  std::mt19937_64 random_;
};

}  // namespace lamina::persist
