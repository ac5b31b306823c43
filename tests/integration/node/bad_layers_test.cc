// Layers that cannot be read, and images and regions that were damaged on disk: clear errors, made anew, and
// never given out.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <filesystem>
#include <thread>

#include "base/file_system.h"
#include "base/positioned_io.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "base/unix_socket.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

namespace fs = std::filesystem;
using laminad::v1::Placement;
using ::testing::HasSubstr;

constexpr std::chrono::seconds kCommand{30};

absl::Status Sh(const std::vector<std::string>& argv) { return RunChecked(argv, kCommand); }

class BadLayers : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_OK(laminad_.Start()) << laminad_.Log(); }

  std::string MakeLayer(const std::string& name, size_t bytes) {
    const std::string directory = laminad_.directory() + "/snapshots/" + name;
    fs::create_directories(directory);
    WriteFile(directory + "/data", std::string(bytes, name[0]));
    return directory;
  }
  uint64_t Claim(const std::string& id) {
    const auto claim = laminad_.Claim(id, 256 * kMiB);
    EXPECT_OK(claim);
    return claim.ok() ? claim->generation() : 0;
  }
  // Of one layer, for a sandbox of its own that lives on.
  absl::StatusOr<Placement> Place(const std::string& id, const std::string& layer) {
    const auto placed = laminad_.Place(id, Claim(id), {layer});
    if (!placed.ok()) return placed.status();
    return placed->placements(0);
  }
  // What the sandbox' VM would read.
  std::string DigestOf(const Placement& placement) {
    const bool disk = placement.kind() == Placement::SCSI;
    const auto sum = RunCommand(
        {"sh", "-c", R"(dd if="$0" bs=4096 skip="$1" count="$2" status=none | sha256sum)",
         disk ? placement.image_path() : placement.arena().path(), std::to_string(placement.offset() / 4096),
         std::to_string(placement.payload_bytes() / 4096)},
        kCommand);
    EXPECT_OK(sum);
    return sum.ok() ? sum->output.substr(0, 64) : "";
  }
  void Damage(const std::string& path, uint64_t offset) {
    UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_TRUE(fd) << path;
    ASSERT_OK(WriteAt(fd.get(), path, offset, "damage", 6));
  }
  std::string Metrics() { return laminad_.Http("/metrics").body; }
  std::vector<std::string> StoredFiles() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(laminad_.directory() + "/state/layers")) {
      if (entry.path().filename() != "index.json") names.push_back(entry.path().filename());
    }
    return names;
  }

  Laminad laminad_{
      "[memory]\ncapacity = \"64GiB\"\nreserve = 0\nmin_available = 0\n"
      "[layers]\narena_size = \"64MiB\"\nmax_layer_size = \"8MiB\"\n"};
};

TEST_F(BadLayers, ADiskThatFailsUnderTheLayerIsAnErrorAndLeavesNothing) {
  // A file system whose end is cut off once it is mounted: its inodes are known, its file cannot be read.
  const std::string image = laminad_.directory() + "/snapshots.img",
                    mounted = laminad_.directory() + "/mounted";
  fs::create_directories(mounted);
  ASSERT_OK(Sh({"truncate", "-s", "16M", image}));
  ASSERT_OK(Sh({"mkfs.ext4", "-q", image}));
  struct Unmount {
    const std::string& path;
    ~Unmount() { EXPECT_OK(Sh({"umount", path})); }
  };
  {
    ASSERT_OK(Sh({"mount", "-o", "loop", image, mounted}));
    Unmount unmount{mounted};
    fs::create_directories(mounted + "/layer");
    WriteFile(mounted + "/layer/data", std::string(8 * kMiB, 'd'));
  }
  const std::string layer = mounted + "/layer";
  absl::StatusOr<Placement> placed;
  {
    ASSERT_OK(Sh({"mount", "-o", "loop,ro", image, mounted}));
    Unmount unmount{mounted};
    ASSERT_EQ(fs::file_size(layer + "/data"), 8 * kMiB);
    ASSERT_EQ(truncate(image.c_str(), 1 * kMiB), 0);
    placed = Place("one", layer);
  }
  ASSERT_NOT_OK(placed);
  EXPECT_THAT(std::string(placed.status().message()), HasSubstr(layer));
  EXPECT_THAT(std::string(placed.status().message()), HasSubstr("Input/output error"));
  EXPECT_THAT(StoredFiles(), ::testing::IsEmpty());
  EXPECT_THAT(Metrics(), HasSubstr("lamina_layer_conversion_failures_total 1\n"));
}

TEST_F(BadLayers, AFileThatVanishesMeanwhileFailsOrIsLeftOutAndTheNextOneGetsTheLayer) {
  const std::string layer = MakeLayer("vanishing", 4 * kMiB);
  for (int i = 0; i < 2000; ++i) WriteFile(fmt::format("{}/file-{:04}", layer, i), "content");
  std::atomic<bool> done{false};
  std::thread remover([&] {
    for (int i = 1999; i >= 0 && !done; --i) fs::remove(fmt::format("{}/file-{:04}", layer, i));
  });
  const auto first = Place("one", layer);
  done = true;
  remover.join();
  if (!first.ok()) {
    EXPECT_THAT(std::string(first.status().message()), HasSubstr("convert layer " + layer));
    EXPECT_THAT(StoredFiles(), ::testing::IsEmpty());
  }
  const auto second = Place("two", layer);
  ASSERT_OK(second);
  EXPECT_EQ(DigestOf(*second), second->layer_id());
}

TEST_F(BadLayers, SpecialFilesAndLongNamesAreKeptAndATooLongOneIsNamed) {
  const std::string layer = MakeLayer("odd", 100);
  ASSERT_OK(ListenUnix(layer + "/socket"));
  ASSERT_EQ(mkfifo((layer + "/fifo").c_str(), 0600), 0);
  ASSERT_EQ(mknod((layer + "/null").c_str(), S_IFCHR | 0600, makedev(1, 3)), 0);
  const std::string longest(NAME_MAX - 1, 'n');
  WriteFile(layer + "/" + longest, "as long as it gets");
  const auto placed = Place("one", layer);
  ASSERT_OK(placed);

  const std::string image = laminad_.directory() + "/image", out = laminad_.directory() + "/out";
  ASSERT_OK(Sh({"dd", "if=" + placed->arena().path(), "of=" + image, "bs=4096", "status=none",
                fmt::format("skip={}", placed->offset() / 4096),
                fmt::format("count={}", placed->payload_bytes() / 4096)}));
  ASSERT_OK(Sh({"fsck.erofs", "--extract=" + out, image}));
  EXPECT_TRUE(fs::is_socket(out + "/socket"));
  EXPECT_TRUE(fs::is_fifo(out + "/fifo"));
  EXPECT_TRUE(fs::is_character_file(out + "/null"));
  EXPECT_EQ(fs::file_size(out + "/" + longest), 18U);

  const std::string refused = MakeLayer("too-long", 100), name(NAME_MAX, 'x');
  fs::create_directories(refused + "/inside");
  WriteFile(refused + "/inside/" + name, "one byte more");
  const auto too_long = Place("two", refused);
  EXPECT_THAT(too_long, testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(std::string(too_long.status().message()),
              HasSubstr("name of 255 bytes: " + refused + "/inside/" + name));
}

TEST_F(BadLayers, ADamagedRegionIsMadeAnewAfterARestartAndItsPlaceIsNotGivenAwayUnderAVm) {
  const std::string layer = MakeLayer("region", 1 * kMiB);
  Sleeper vmm;
  const uint64_t generation = Claim("living");
  ASSERT_OK(laminad_.Started("living", generation, vmm));
  const auto placed = laminad_.Place("living", generation, {layer});
  ASSERT_OK(placed);
  const Placement before = placed->placements(0);
  ASSERT_EQ(before.kind(), Placement::VPMEM);
  laminad_.Stop(SIGTERM);
  Damage(before.arena().path(), before.offset() + 500 * kKiB);
  ASSERT_OK(laminad_.Start()) << laminad_.Log();

  const auto after = Place("next", layer);
  ASSERT_OK(after);
  EXPECT_FALSE(after->reused());
  EXPECT_EQ(after->layer_id(), before.layer_id());
  EXPECT_EQ(DigestOf(*after), after->layer_id());
  EXPECT_FALSE(after->arena().path() == before.arena().path() && after->offset() == before.offset())
      << "the living VM has the damaged one mapped";
  EXPECT_NE(DigestOf(before), before.layer_id());
  EXPECT_THAT(Metrics(), HasSubstr("lamina_layers_rebuilt_total 1\n"));
  EXPECT_THAT(laminad_.Log(), HasSubstr("is damaged: it is rebuilt from " + layer));
}

TEST_F(BadLayers, ADamagedRegionWhoseSnapshotIsGoneIsAnErrorAndNotData) {
  const std::string layer = MakeLayer("region", 1 * kMiB);
  const auto before = Place("one", layer);
  ASSERT_OK(before);
  laminad_.Stop(SIGTERM);
  Damage(before->arena().path(), before->offset() + 500 * kKiB);
  fs::remove_all(layer);
  ASSERT_OK(laminad_.Start()) << laminad_.Log();
  const auto after = Place("two", layer);
  EXPECT_THAT(after, testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(std::string(after.status().message()), HasSubstr(layer));
}

TEST_F(BadLayers, ADamagedDiskImageIsMadeAnewAfterARestart) {
  const std::string layer = MakeLayer("disk", 9 * kMiB);
  const uint64_t generation = Claim("one");
  const auto placed = laminad_.Place("one", generation, {layer});
  ASSERT_OK(placed);
  const Placement before = placed->placements(0);
  ASSERT_EQ(before.kind(), Placement::SCSI);
  ASSERT_OK(laminad_.Release("one", generation));
  laminad_.Stop(SIGTERM);
  Damage(before.image_path(), 5 * kMiB);
  ASSERT_NE(DigestOf(before), before.layer_id());
  ASSERT_OK(laminad_.Start()) << laminad_.Log();
  const auto after = Place("two", layer);
  ASSERT_OK(after);
  EXPECT_EQ(after->layer_id(), before.layer_id());
  EXPECT_EQ(DigestOf(*after), after->layer_id());
}

TEST_F(BadLayers, ABlobDamagedBeforeItIsPlacedIsAnotherLayerOrRefused) {
  const std::string layer = MakeLayer("blob", 1 * kMiB), blob = laminad_.directory() + "/layer.erofs";
  ASSERT_OK(Sh({"mkfs.erofs", "--quiet", blob, layer}));
  const auto good = Place("one", blob);
  ASSERT_OK(good);
  Damage(blob, 500 * kKiB);
  const auto changed = Place("two", blob);
  ASSERT_OK(changed);
  EXPECT_NE(changed->layer_id(), good->layer_id()) << "its name is its content";
  EXPECT_EQ(DigestOf(*good), good->layer_id()) << "who has the good one keeps it";
  Damage(blob, 1024);  // the superblock's magic
  const auto refused = Place("three", blob);
  EXPECT_THAT(refused, testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr(blob + ": not an EROFS image"));
}

}  // namespace
}  // namespace lamina::node
