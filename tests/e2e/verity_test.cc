// Disks with hash trees: the guest sees the image that laminad examined, or an error.
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/e2e/kit/image.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Where `bytes` first stand in the file; -1: nowhere.
std::streamoff Find(const std::string& path, const std::string& bytes) {
  std::ifstream in(path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(in)), {});
  const size_t at = all.find(bytes);
  return at == std::string::npos ? -1 : static_cast<std::streamoff>(at);
}

void Put(const std::string& path, std::streamoff at, char byte) {
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(at).put(byte);
}

class VerityTest : public ::testing::Test {
 protected:
  void SetUp() override { Configure(true); }
  void TearDown() override {
    EXPECT_OK(TestNode().RemoveAllPods());
    EXPECT_THAT(TestNode().Leftovers(In(std::chrono::seconds(30))), IsEmpty());
    Configure(false);
  }
  static void Configure(bool verity) {
    ASSERT_OK(TestNode().StopLaminad());
    ASSERT_OK(TestNode().Reconfigure({{"layers.scsi_verity", verity ? "true" : "false"}}));
    ASSERT_OK(TestNode().StartLaminad());
  }
  // The layer that came as a disk, as laminad tells of it.
  static nlohmann::json Disk() {
    const auto body = TestNode().Rest("/v1/layers");
    EXPECT_OK(body.status());
    const auto answer = nlohmann::json::parse(body.value_or("{}"), nullptr, false);
    for (const auto& layer : answer.value("layers", nlohmann::json::array())) {
      if (layer.value("kind", "") == "scsi") return layer;
    }
    return nlohmann::json::object();
  }
};

TEST_F(VerityTest, ABlockThatChangedOnTheNodeIsAnErrorInTheGuest) {
  ASSERT_OK(NeedImage(kBigImage));
  const Image image = Images().Big();
  const std::string& noise = image.layers.back().entries().back().content;
  ASSERT_OK_AND_ASSIGN(const std::string pod, Cri().RunPod({}));
  ContainerSpec spec = Sleeper("first");
  spec.image = kBigImage;
  ASSERT_OK_AND_ASSIGN(const std::string first, Cri().RunContainer(pod, spec));
  const nlohmann::json disk = Disk();
  ASSERT_THAT(disk.value("root_hash", ""), ContainsRegex("^[0-9a-f]{64}$")) << disk.dump();
  const std::string path = disk.value("image_path", "");
  const std::streamoff at = Find(path, noise.substr(noise.size() / 2, 64));
  ASSERT_GT(at, 0) << path;

  Put(path, at, static_cast<char>(noise[noise.size() / 2] ^ 1));
  ASSERT_OK_AND_ASSIGN(const ExecResult changed, Cri().ExecSync(first, {"sha256sum", "/big/noise"}, 120));
  Put(path, at, noise[noise.size() / 2]);
  EXPECT_NE(changed.exit_code, 0) << changed.out;
  EXPECT_THAT(changed.err, HasSubstr("nput/output error"));

  // The second container of the pod has the same disk and tree.
  spec.name = "second";
  ASSERT_OK_AND_ASSIGN(const std::string second, Cri().RunContainer(pod, spec));
  for (const std::string& id : {second, first}) {
    ASSERT_OK_AND_ASSIGN(const ExecResult sum, Cri().ExecSync(id, {"sha256sum", "/big/noise"}, 120));
    EXPECT_EQ(sum.out.substr(0, 64), Sha256(noise)) << sum.err;
    EXPECT_OK(Cri().StopContainer(id, 0));
    EXPECT_OK(Cri().RemoveContainer(id));
  }
  // Detached with the last, and attached again.
  spec.name = "third";
  ASSERT_OK_AND_ASSIGN(const std::string third, Cri().RunContainer(pod, spec));
  ASSERT_OK_AND_ASSIGN(const ExecResult sum, Cri().ExecSync(third, {"sha256sum", "/big/noise"}, 120));
  EXPECT_EQ(sum.out.substr(0, 64), Sha256(noise)) << sum.err;
}

}  // namespace
}  // namespace lamina::e2e
