#include "base/config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/file_system.h"
#include "tests/testing/status_matchers.h"

namespace lamina {
namespace {

using testing::HasStatus;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(Config, EmptyTextGivesDefaults) {
  const auto config = ParseConfig("", "c");
  ASSERT_OK(config);
  EXPECT_EQ(config->paths.run_dir, "/run/lamina");
  EXPECT_EQ(config->shim_socket(), "/run/lamina/shim.sock");
}

TEST(Config, ReadsValues) {
  const auto config = ParseConfig(
      "[sizing]\noverhead_cpu = \"0.5\"\noverhead_memory = \"64MiB\"\nallowed_annotations = "
      "[\"lamina.io/default-cpu\"]\n"
      "[layers]\nvpmem = false\npolicy = \"classic\"\narena_size = \"256MiB\"\n",
      "c");
  ASSERT_OK(config);
  EXPECT_EQ(config->sizing.overhead_nano_cpus, 500'000'000);
  EXPECT_EQ(config->sizing.overhead_memory_bytes, 64 * kMiB);
  EXPECT_EQ(config->sizing.allowed_annotations, std::vector<std::string>{"lamina.io/default-cpu"});
  EXPECT_FALSE(config->layers.vpmem);
}

TEST(Config, ErrorsNameKeyLineAndValue) {
  EXPECT_THAT(
      ParseConfig("[sizing]\noverhead_cpus = \"1\"\n", "c.toml"),
      HasStatus(
          kInvalid,
          "c.toml:2: unknown option sizing.overhead_cpus; the nearest known one is sizing.overhead_cpu"));
  EXPECT_THAT(ParseConfig("[sizing]\noverhead_cpu = 0.5\n", "c"), HasStatus(kInvalid, "sizing.overhead_cpu"));
  EXPECT_THAT(ParseConfig("[sizing]\noverhead_memory = \"64MB!\"\n", "c"), HasStatus(kInvalid, "64MB!"));
  EXPECT_THAT(ParseConfig("[hypervisor]\naccel = \"xen\"\n", "c"),
              HasStatus(kInvalid, "must be one of auto, kvm, tcg"));
  EXPECT_THAT(ParseConfig("[paths]\nrun_dir = \"relative\"\n", "c"), HasStatus(kInvalid, "absolute"));
  EXPECT_THAT(ParseConfig("[hypervisor]\nhotplug_ports = 65\n", "c"), HasStatus(kInvalid, "from 1 to 64"));
  EXPECT_THAT(ParseConfig("[layers]\npolicy = \"classic\"\narena_size = \"512MiB\"\n", "c"),
              HasStatus(kInvalid, "layers.arena_size"));
  EXPECT_THAT(ParseConfig("run_dir = \"/x\"\n", "c"), HasStatus(kInvalid, "outside a section"));
  EXPECT_THAT(ParseConfig("[sizing\n", "c"), HasStatus(kInvalid, "c:1"));
  EXPECT_THAT(ParseConfig("[memory]\nreserve = -1\n", "c"), HasStatus(kInvalid, "-1"));
  EXPECT_THAT(ParseConfig("[volumes]\nroot = \"tape\"\n", "c"),
              HasStatus(kInvalid, "must be one of disk, memory"));
  EXPECT_THAT(ParseConfig("[volumes]\nroot_size = \"1MiB\"\n", "c"),
              HasStatus(kInvalid, "volumes.root_size = 1MiB: must be from 64MiB to 8TiB"));
  EXPECT_THAT(ParseConfig("[volumes]\nempty_dir_size = \"9TiB\"\n", "c"),
              HasStatus(kInvalid, "volumes.empty_dir_size = 9TiB"));
  for (const char* bad :
       {"[::1]:9477", "::1", "127.0.0.1", ":9477", "host:", "host:0", "host:65536", "host:x"}) {
    EXPECT_THAT(ParseConfig(fmt::format("[laminad]\nrest_address = \"{}\"\n", bad), "c"),
                HasStatus(kInvalid, fmt::format("rest_address = \"{}\": must be HOST:PORT", bad)));
  }
  EXPECT_OK(ParseConfig("[laminad]\nrest_address = \"localhost:80\"\n", "c"));
}

TEST(Config, SampleShowsTheDefaults) {
  const auto text = FileSystem::Real().Read(LAMINA_SOURCE_DIR "/config/lamina.toml", 1 << 20);
  ASSERT_OK(text);
  const auto sample = ParseConfig(*text, "lamina.toml");
  ASSERT_OK(sample);
  const Config defaults;
  EXPECT_EQ(sample->paths.guest_dir, defaults.paths.guest_dir);
  EXPECT_EQ(sample->sizing.overhead_nano_cpus, defaults.sizing.overhead_nano_cpus);
  EXPECT_EQ(sample->sizing.overhead_memory_bytes, defaults.sizing.overhead_memory_bytes);
  EXPECT_EQ(sample->sizing.default_nano_cpus, defaults.sizing.default_nano_cpus);
  EXPECT_EQ(sample->sizing.default_memory_bytes, defaults.sizing.default_memory_bytes);
  EXPECT_EQ(sample->sizing.allowed_annotations, defaults.sizing.allowed_annotations);
  EXPECT_EQ(sample->sizing.min_memory_bytes, defaults.sizing.min_memory_bytes);
  EXPECT_EQ(sample->sizing.mode, defaults.sizing.mode);
  EXPECT_EQ(sample->sizing.hotplug_vcpus, defaults.sizing.hotplug_vcpus);
  EXPECT_EQ(sample->sizing.hotplug_memory_bytes, defaults.sizing.hotplug_memory_bytes);
  EXPECT_EQ(sample->sizing.cgroup_fit, defaults.sizing.cgroup_fit);
  EXPECT_EQ(sample->hypervisor.accel, defaults.hypervisor.accel);
  EXPECT_EQ(sample->hypervisor.firmware, defaults.hypervisor.firmware);
  EXPECT_EQ(sample->hypervisor.virtiofsd, defaults.hypervisor.virtiofsd);
  EXPECT_EQ(sample->hypervisor.users, defaults.hypervisor.users);
  EXPECT_EQ(sample->hypervisor.boot_timeout_seconds, defaults.hypervisor.boot_timeout_seconds);
  EXPECT_EQ(sample->hypervisor.hotplug_ports, defaults.hypervisor.hotplug_ports);
  EXPECT_EQ(sample->hypervisor.vmm_overhead_memory_bytes, defaults.hypervisor.vmm_overhead_memory_bytes);
  EXPECT_EQ(sample->layers.policy, defaults.layers.policy);
  EXPECT_EQ(sample->layers.sharing, defaults.layers.sharing);
  EXPECT_EQ(sample->layers.arena_bytes, defaults.layers.arena_bytes);
  EXPECT_EQ(sample->layers.max_layer_bytes, defaults.layers.max_layer_bytes);
  EXPECT_EQ(sample->layers.max_arenas_per_pod, defaults.layers.max_arenas_per_pod);
  EXPECT_EQ(sample->layers.idle_budget_bytes, defaults.layers.idle_budget_bytes);
  EXPECT_EQ(sample->layers.convert_timeout_seconds, defaults.layers.convert_timeout_seconds);
  EXPECT_EQ(sample->layers.convert_memory_bytes, defaults.layers.convert_memory_bytes);
  EXPECT_EQ(sample->layers.convert_size_bytes, defaults.layers.convert_size_bytes);
  EXPECT_EQ(sample->memory.reserve_bytes, defaults.memory.reserve_bytes);
  EXPECT_EQ(sample->memory.min_available_bytes, defaults.memory.min_available_bytes);
  EXPECT_EQ(sample->volumes.root, defaults.volumes.root);
  EXPECT_EQ(sample->volumes.root_size_bytes, defaults.volumes.root_size_bytes);
  EXPECT_EQ(sample->volumes.empty_dir, defaults.volumes.empty_dir);
  EXPECT_EQ(sample->volumes.empty_dir_size_bytes, defaults.volumes.empty_dir_size_bytes);
  EXPECT_EQ(sample->laminad.rest_address, defaults.laminad.rest_address);
  EXPECT_EQ(sample->laminad.rest_tls_certificate, defaults.laminad.rest_tls_certificate);
  EXPECT_EQ(sample->laminad.rest_tls_key, defaults.laminad.rest_tls_key);
  EXPECT_EQ(sample->laminad.rest_token_file, defaults.laminad.rest_token_file);
}

TEST(Config, RestHasACertificateWithItsKeyOrNeither) {
  const auto both = ParseConfig("[laminad]\nrest_tls_certificate = \"/a\"\nrest_tls_key = \"/b\"\n", "c");
  ASSERT_OK(both);
  EXPECT_EQ(both->laminad.rest_tls_key, "/b");
  EXPECT_THAT(
      ParseConfig("[laminad]\nrest_tls_certificate = \"/a\"\n", "c"),
      HasStatus(kInvalid, "rest_tls_certificate = \"/a\" and laminad.rest_tls_key = \"\": both or neither"));
  EXPECT_THAT(ParseConfig("[laminad]\nrest_token_file = \"token\"\n", "c"),
              HasStatus(kInvalid, "laminad.rest_token_file = \"token\": must be an absolute path"));
}

TEST(ConfigTest, UsersAreARangeOfNobodysNumbers) {
  const auto users = [](const std::string& value) {
    return ParseConfig("[hypervisor]\nusers = \"" + value + "\"\n", "c.toml");
  };
  EXPECT_EQ(users("5000-5009")->hypervisor.users, (UserRange{5000, 5009}));
  EXPECT_EQ(users("5000-5000")->hypervisor.users, (UserRange{5000, 5000}));
  EXPECT_TRUE(users("")->hypervisor.users.empty());
  for (const char* wrong :
       {"0-10", "999-5000", "5009-5000", "5000", "5000-", "a-b", "5000-4294967295", "-5000--4000"}) {
    EXPECT_THAT(users(wrong),
                lamina::testing::HasStatus(absl::StatusCode::kInvalidArgument, "must be FIRST-LAST"))
        << wrong;
  }
}

}  // namespace
}  // namespace lamina
