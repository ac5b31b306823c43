// `lamina` as people and scripts call it: outputs and exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file_system.h"
#include "base/units.h"
#include "persist/state_store.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<std::string> SizeOf(std::vector<std::string> more) {
  std::vector<std::string> all = {"size",   "--overhead-cpu",
                                  "0.5",    "--overhead-memory",
                                  "64MiB",  "--default-cpu",
                                  "1",      "--default-memory",
                                  "256MiB", "-o",
                                  "json"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

json SizeJson(std::vector<std::string> more) {
  const CliAnswer answer = RunLamina(SizeOf(std::move(more)));
  EXPECT_EQ(answer.exit_code, 0) << answer.output;
  return json::parse(answer.output, nullptr, false);
}

TEST(LaminaSize, AddsExactlyAndRoundsOnce) {
  const json quarter = SizeJson({"--quota", "25000", "--period", "100000"});
  EXPECT_EQ(quarter["vcpus"], 1);
  EXPECT_EQ(quarter["vcpus_exact"], "0.75");
  EXPECT_EQ(quarter["memory_mib"], 320);  // no memory limit: overhead and default
  EXPECT_EQ(quarter["vcpus_if_rounded_per_container"], 2);
  EXPECT_FALSE(quarter["reasons"].empty());
  std::vector<std::string> keys;
  for (const auto& [key, value] : quarter.items()) keys.push_back(key);
  EXPECT_THAT(keys, ::testing::UnorderedElementsAre("vcpus", "vcpus_exact", "memory_mib",
                                                    "vcpus_if_rounded_per_container", "reasons"));
  EXPECT_EQ(SizeJson({"--memory", "268435456"})["memory_mib"], 320);

  const json two = SizeJson({"--container", "cpu=250m,memory=128Mi", "--container", "cpu=250m,memory=64Mi"});
  EXPECT_EQ(two["vcpus"], 1);
  EXPECT_EQ(two["vcpus_exact"], "1");
  EXPECT_EQ(two["memory_mib"], 256);
  EXPECT_GE(two["vcpus_if_rounded_per_container"], 2);

  std::vector<std::string> ten;
  for (int i = 0; i < 10; ++i) ten.insert(ten.end(), {"--container", "cpu=0.05,memory=1Mi"});
  const json tenths = SizeJson(ten);
  EXPECT_EQ(tenths["vcpus"], 1);
  EXPECT_EQ(tenths["vcpus_exact"], "1");
  EXPECT_EQ(tenths["memory_mib"], 74);
}

TEST(LaminaSize, TakesSharesWithQuotaMinusOne) {
  const json sized = SizeJson({"--quota", "-1", "--shares", "3072"});
  EXPECT_EQ(sized["vcpus"], 4);
  EXPECT_EQ(sized["vcpus_exact"], "3.5");
}

TEST(LaminaSize, ReadsAConfigAndASpec) {
  Laminad files("[sizing]\noverhead_cpu = \"0.5\"\noverhead_memory = \"64MiB\"\n");
  const std::string spec = files.directory() + "/config.json";
  WriteFile(
      spec,
      R"({"annotations": {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-cpu-quota": "150000",
                      "io.kubernetes.cri.sandbox-cpu-period": "100000", "io.kubernetes.cri.sandbox-memory": "134217728"}})");
  const CliAnswer answer = RunLamina({"size", "--spec", spec, "-o", "json"}, &files);
  ASSERT_EQ(answer.exit_code, 0) << answer.output;
  EXPECT_EQ(json::parse(answer.output)["vcpus"], 2);
  EXPECT_EQ(json::parse(answer.output)["memory_mib"], 192);
}

TEST(LaminaSize, TakesAContainersOwnSpecBesideOthers) {
  const Laminad files("");
  const std::string spec = files.directory() + "/config.json";
  WriteFile(spec, R"({"annotations": {"io.kubernetes.cri.container-type": "container",
                                      "io.kubernetes.cri.container-name": "web"},
                      "linux": {"resources": {"cpu": {"quota": 125000, "period": 100000},
                                              "memory": {"limit": 67108864},
                                              "hugepageLimits": [{"pageSize": "2MB", "limit": 33554432}]}}})");
  const json sized = SizeJson({"--spec", spec, "--container", "cpu=500m,memory=32Mi"});
  EXPECT_EQ(sized["vcpus"], 3);
  EXPECT_EQ(sized["vcpus_exact"], "2.25");
  EXPECT_EQ(sized["memory_mib"], 192);
  WriteFile(spec, R"({"annotations": {"lamina.io/overhead-cpu": "2"}})");
  const CliAnswer answer = RunLamina(SizeOf({"--spec", spec}));
  EXPECT_EQ(answer.exit_code, 2);
  EXPECT_THAT(answer.output, HasSubstr("lamina.io/overhead-cpu"));
}

TEST(LaminaSize, NamesWhatIsInvalid) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--quota", "many"}, "many"},
      {{"--quota", "-2"}, "-2"},
      {{"--quota", "1000", "--period", "0"}, "period"},
      {{"--memory", "12XB"}, "12XB"},
      {{"--memory", "-5"}, "-5"},
      {{"--container", "cpu=250m,memry=1Mi"}, "memry"},
      {{"--container", "cpu=-1"}, "-1"},
      {{"--container", "nonsense"}, "nonsense"},
      {{"--max-memory", "half"}, "half"},
      {{"--max-cpu", "1", "--quota", "400000"}, "1"},
      {{"--spec", "/does/not/exist"}, "/does/not/exist"},
      {{"--no-such-flag"}, "no-such-flag"},
  };
  for (const auto& [arguments, named] : cases) {
    const CliAnswer answer = RunLamina(SizeOf(arguments));
    EXPECT_EQ(answer.exit_code, 2) << arguments[0] << ": " << answer.output;
    EXPECT_THAT(answer.output, HasSubstr(named));
  }
}

TEST(LaminaCli, SaysWhenLaminadIsAway) {
  const Laminad absent;  // never started
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"sandboxes"}, {"claims"}, {"arenas"}, {"layers"}, {"layers", "gc"}, {"explain", "x"}}) {
    const CliAnswer answer = RunLamina(command, &absent);
    EXPECT_EQ(answer.exit_code, 3) << command[0] << ": " << answer.output;
    EXPECT_THAT(answer.output, HasSubstr(absent.directory() + "/run/laminad.sock"));
  }
}

TEST(LaminaCli, ListsAndExplains) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  Sleeper vmm;
  const auto claim = laminad.Claim("abcdef0123456789", 320 * kMiB);
  ASSERT_OK(claim);
  ASSERT_OK(laminad.Started("abcdef0123456789", claim->generation(), vmm));
  EXPECT_THAT(RunLamina({"sandboxes"}, &laminad).output,
              AllOf(HasSubstr("abcdef0123456"), HasSubstr("shop/pod-abcdef"), HasSubstr("320MiB")));
  EXPECT_THAT(RunLamina({"claims"}, &laminad).output,
              AllOf(HasSubstr("320MiB of 64GiB claimed by 1 sandboxes"), HasSubstr("yes")));
  const CliAnswer explained = RunLamina({"explain", "abc"}, &laminad);
  EXPECT_EQ(explained.exit_code, 0) << explained.output;
  EXPECT_THAT(explained.output,
              AllOf(HasSubstr("rounded up once to 1"), HasSubstr("exactly 0.75"), HasSubstr("would take 2")));
  EXPECT_EQ(
      json::parse(RunLamina({"explain", "shop/pod-abcdef0123456789", "-o", "json"}, &laminad).output)["id"],
      "abcdef0123456789");
  // Which way its volumes took stands in its state.
  persist::SandboxState state;
  state.sandbox_id = "abcdef0123456789";
  state.volumes.push_back({"v1", "shared by virtiofs", "/srv/data", "8:1", "/data", true, false});
  state.containers["web"].id = "web";
  state.containers["web"].mounts = {"v1"};
  ASSERT_OK(persist::StateStore(FileSystem::Real(), laminad.directory() + "/state").Save(state));
  EXPECT_THAT(RunLamina({"explain", "abc"}, &laminad).output,
              AllOf(HasSubstr("/srv/data"), HasSubstr("shared by virtiofs"), HasSubstr("web")));
  const auto volumes = json::parse(RunLamina({"explain", "abc", "-o", "json"}, &laminad).output)["volumes"];
  ASSERT_EQ(volumes.size(), 1U);
  EXPECT_EQ(volumes[0]["source"], "/srv/data");
  EXPECT_EQ(volumes[0]["users"][0], "web");
  EXPECT_EQ(RunLamina({"explain", "nobody"}, &laminad).exit_code, 1);
  ASSERT_OK(laminad.Claim("abcdefff", 1 * kMiB));
  EXPECT_EQ(RunLamina({"explain", "abc"}, &laminad).exit_code, 2);  // two match
  EXPECT_EQ(json::parse(RunLamina({"claims", "-o", "json"}, &laminad).output)["claims"].size(), 2u);
  EXPECT_EQ(json::parse(RunLamina({"arenas", "-o", "json"}, &laminad).output)["arenas"].size(), 0u);
}

TEST(LaminaCli, DocumentsItsExitCodes) {
  const CliAnswer help = RunLamina({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.output,
              HasSubstr("Exit codes: 0 done, 1 failure, 2 invalid input, 3 laminad unavailable"));
  EXPECT_EQ(RunLamina({}).exit_code, 2);
  EXPECT_EQ(RunLamina({"version"}).exit_code, 0);
  EXPECT_TRUE(json::parse(RunLamina({"version", "-o", "json"}).output).contains("version"));
}

TEST(LaminaDoctor, FindsWhatIsMissingAndWhoLostItsOwner) {
  Laminad laminad("[memory]\nnonsense = 1\n");
  const CliAnswer broken = RunLamina({"doctor"}, &laminad);
  EXPECT_EQ(broken.exit_code, 2) << broken.output;  // the config itself

  Laminad node(
      "[hypervisor]\nqemu = \"/no/such/qemu\"\n[memory]\ncapacity = \"64GiB\"\nreserve = 0\nmin_available = "
      "0\n");
  ASSERT_OK(node.Start()) << node.Log();
  Sleeper shim;
  persist::SandboxState state;
  state.sandbox_id = "orphan";
  state.shim = {shim.pid(), shim.start_time()};
  persist::StateStore store(FileSystem::Real(), node.directory() + "/state");
  ASSERT_OK(store.Save(state));
  const auto findings = [&] {
    const CliAnswer answer = RunLamina({"doctor", "-o", "json"}, &node);
    EXPECT_EQ(answer.exit_code, 1);
    return json::parse(answer.output.substr(0, answer.output.rfind('}') + 1), nullptr, false)["findings"];
  };
  const auto verdict = [](const json& list, const std::string& check) -> std::string {
    for (const json& finding : list) {
      if (finding["check"] == check) return finding["verdict"];
    }
    return "absent";
  };
  json list = findings();
  EXPECT_EQ(verdict(list, "qemu"), "failure");
  EXPECT_EQ(verdict(list, "laminad"), "ok");
  EXPECT_EQ(verdict(list, "confinement"), "ok");
  // Its VM has not begun.
  EXPECT_EQ(verdict(list, "sandbox orphan"), "ok");
  // What a running one has is looked up in /proc: this one is confined by nobody.
  Sleeper vmm;
  state.vmm = state.virtiofsd = {vmm.pid(), vmm.start_time()};
  ASSERT_OK(store.Save(state));
  list = findings();
  EXPECT_EQ(verdict(list, "sandbox orphan"), "warning");
  EXPECT_THAT(list.dump(), AllOf(HasSubstr("the user 0, none of hypervisor.users"),
                                 HasSubstr("the node's namespaces ipc, mnt, net, pid, uts"),
                                 HasSubstr("the node's root directory")));
  shim.End();
  EXPECT_EQ(verdict(findings(), "sandbox orphan"), "failure");
}

}  // namespace
}  // namespace lamina::node
