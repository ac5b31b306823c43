#include "persist/state_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

#include "base/framing.h"
#include "tests/testing/dying_file_system.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "tests/unit/persist/random_state.h"

namespace lamina::persist {
namespace {

using absl::StatusCode;
using testing::DyingFileSystem;
using testing::HasStatus;
using testing::TempDir;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::set<std::string> FilesBelow(const std::string& dir) {
  std::set<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir)) {
    if (!entry.is_directory()) files.insert(entry.path().lexically_relative(dir).string());
  }
  return files;
}

class StateStoreTest : public ::testing::Test {
 protected:
  SandboxState Make(const std::string& id) { return random_.Make(id); }

  TempDir dir_;
  StateStore store_{FileSystem::Real(), dir_.path()};
  RandomState random_{11};
};

TEST_F(StateStoreTest, SavesForTheOwnerOnlyAndLoads) {
  const SandboxState state = Make("a");
  ASSERT_OK(store_.Save(state));
  struct stat info {};
  ASSERT_EQ(stat(store_.Path("a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600U);
  ASSERT_EQ(stat((dir_ / "sandboxes/a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700U);
  const auto loaded = store_.Load("a");
  ASSERT_OK(loaded.status());
  EXPECT_EQ(EncodeState(*loaded), EncodeState(state));
  EXPECT_EQ(*store_.List(), std::vector<std::string>{"a"});
}

TEST_F(StateStoreTest, RemovedContainersLeaveTheFile) {
  SandboxState state = Make("a");
  state.containers["the-one"].id = "the-one";
  ASSERT_OK(store_.Save(state));
  EXPECT_NE(ReadAll(store_.Path("a")).find("the-one"), std::string::npos);
  state.containers.erase("the-one");
  ASSERT_OK(store_.Save(state));
  EXPECT_EQ(ReadAll(store_.Path("a")).find("the-one"), std::string::npos);
}

TEST_F(StateStoreTest, NothingSavedIsNotFoundAndNoError) {
  EXPECT_THAT(store_.Load("a"), HasStatus(StatusCode::kNotFound, store_.Path("a")));
  EXPECT_TRUE(store_.List()->empty());
  EXPECT_OK(store_.Remove("a"));
}

TEST_F(StateStoreTest, UnsafeIdsTouchNothing) {
  SandboxState state = Make("../x");
  EXPECT_THAT(store_.Save(state), HasStatus(StatusCode::kInvalidArgument, "../x"));
  EXPECT_THAT(store_.Load(".."), HasStatus(StatusCode::kInvalidArgument, ".."));
  EXPECT_THAT(store_.Remove(".."), HasStatus(StatusCode::kInvalidArgument, ".."));
  EXPECT_TRUE(FilesBelow(dir_.path()).empty());
}

TEST_F(StateStoreTest, ANewerFileIsLeftUntouched) {
  ASSERT_OK(store_.Save(Make("a")));
  const std::string newer = EncodeFrame({"state", 3, kStateVersion + 1}, "{}");
  std::ofstream(store_.Path("a")) << newer;
  EXPECT_THAT(store_.Load("a"), HasStatus(StatusCode::kFailedPrecondition, store_.Path("a")));
  EXPECT_EQ(ReadAll(store_.Path("a")), newer);
}

TEST_F(StateStoreTest, LeftoversOfInterruptionsAreNoSandboxes) {
  ASSERT_OK(store_.Save(Make("a")));
  std::filesystem::create_directories(dir_ / "sandboxes/empty");
  std::filesystem::create_directories(dir_ / "sandboxes/half");
  std::ofstream(dir_ / "sandboxes/half/state.json.tmp") << "x";
  EXPECT_EQ(*store_.List(), std::vector<std::string>{"a"});
  EXPECT_THAT(store_.Load("half"), HasStatus(StatusCode::kNotFound, "half"));
  ASSERT_OK(store_.Save(Make("half")));
  EXPECT_OK(store_.Load("half").status());
  EXPECT_EQ(FilesBelow(dir_.path()),
            (std::set<std::string>{"sandboxes/a/state.json", "sandboxes/half/state.json"}));
  EXPECT_OK(store_.Remove("empty"));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "sandboxes/empty"));
}

// A single failing call: the call fails, the old state stays, no temporary file stays.
TEST_F(StateStoreTest, AFaultAtAnyCallLeavesTheOldState) {
  for (const bool exists : {true, false}) {
    bool clean = false;
    for (int fail_at = 0; !clean; ++fail_at) {
      ASSERT_LT(fail_at, 50);
      TempDir dir;
      FaultyFileSystem faulty(FileSystem::Real());
      StateStore store(faulty, dir.path());
      const SandboxState old = Make("a"), next = Make("a");
      if (exists) {
        ASSERT_OK(store.Save(old));
      }
      faulty.calls = 0;
      faulty.fail_at = fail_at;
      const absl::Status status = store.Save(next);
      clean = faulty.calls <= fail_at;
      EXPECT_EQ(status.ok(), clean) << fail_at << ": " << status;
      const auto loaded = store.Load("a");
      if (clean) {
        EXPECT_EQ(EncodeState(*loaded), EncodeState(next));
        EXPECT_GE(fail_at, 4);
      } else if (exists) {
        ASSERT_OK(loaded.status());
        EXPECT_EQ(EncodeState(*loaded), EncodeState(old)) << fail_at;
      } else {
        EXPECT_THAT(loaded, HasStatus(StatusCode::kNotFound, "")) << fail_at;
      }
      EXPECT_EQ(FilesBelow(dir.path()).size(), loaded.ok() ? 1U : 0U) << fail_at;
      if (!clean) {
        EXPECT_THAT(status, HasStatus(StatusCode::kResourceExhausted, "save the sandbox's state"));
        faulty.fail_at = -1;
        EXPECT_OK(store.Save(next)) << "the next one works";
      }
    }
  }
}

TEST_F(StateStoreTest, AFaultWhileRemovingCanBeRepeated) {
  bool clean = false;
  for (int fail_at = 0; !clean; ++fail_at) {
    ASSERT_LT(fail_at, 50);
    TempDir dir;
    FaultyFileSystem faulty(FileSystem::Real());
    StateStore store(faulty, dir.path());
    ASSERT_OK(store.Save(Make("a")));
    faulty.calls = 0;
    faulty.fail_at = fail_at;
    clean = store.Remove("a").ok();
    EXPECT_EQ(clean, faulty.calls <= fail_at);
    const auto loaded = store.Load("a");
    EXPECT_THAT(loaded, ::testing::AnyOf(HasStatus(StatusCode::kOk), HasStatus(StatusCode::kNotFound)));
    faulty.fail_at = -1;
    EXPECT_OK(store.Remove("a"));
    EXPECT_FALSE(std::filesystem::exists(dir / "sandboxes/a"));
  }
}

// Killed, or without power, at every call of a save: the old state is there, or the new one.
TEST_F(StateStoreTest, ADeathAtAnyCallLeavesTheOldOrTheNewState) {
  for (const bool exists : {true, false}) {
    for (const bool power : {true, false}) {
      bool clean = false;
      for (int die_at = 0; !clean; ++die_at) {
        ASSERT_LT(die_at, 50);
        TempDir dir;
        DyingFileSystem fs;
        StateStore store(fs, dir.path());
        const SandboxState old = Make("a"), next = Make("a");
        if (exists) {
          ASSERT_OK(store.Save(old));
        }
        fs.calls = 0;
        fs.die_at = die_at;
        fs.part = 0.5;
        clean = store.Save(next).ok();
        if (power) fs.LosePower();
        const auto loaded = StateStore(FileSystem::Real(), dir.path()).Load("a");
        const std::string now = loaded.ok() ? EncodeState(*loaded) : "";
        EXPECT_THAT(loaded, ::testing::AnyOf(HasStatus(StatusCode::kOk), HasStatus(StatusCode::kNotFound)));
        EXPECT_TRUE(now == EncodeState(next) || (!clean && now == (exists ? EncodeState(old) : "")))
            << die_at << (power ? " without power" : "");
      }
    }
  }
}

// Against a map of what was saved: operations, faults and deaths in any order. After a death the store holds
// what it held or what was being written, never anything else.
TEST(StateStoreProperty, AgreesWithAMapThroughFaultsAndDeaths) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    TempDir dir;
    RandomState random(seed);
    std::map<std::string, std::string> model;  // id -> encoded state
    int deaths = 0, faults = 0;
    for (int step = 0; step < 120; ++step) {
      DyingFileSystem fs;
      fs.part = 0.5;
      StateStore store(fs, dir.path());
      const std::string id = "s" + std::to_string(random.Below(4));
      const bool dies = random.Below(4) == 0, fails = !dies && random.Below(4) == 0;
      if (dies) fs.die_at = static_cast<int>(random.Below(7));
      if (fails) fs.fail_at = static_cast<int>(random.Below(7));
      const auto had = model.find(id);
      const std::string before = had == model.end() ? "" : had->second;
      std::string wanted;
      absl::Status status;
      if (random.Below(3) != 0) {
        const SandboxState state = random.Make(id);
        wanted = EncodeState(state);
        status = store.Save(state);
      } else {
        status = store.Remove(id);
      }
      deaths += dies && !status.ok() ? 1 : 0;
      faults += fails && !status.ok() ? 1 : 0;
      if (dies && random.Below(2) == 0) fs.LosePower();
      StateStore next(FileSystem::Real(), dir.path());  // who comes after
      const auto loaded = next.Load(id);
      ASSERT_THAT(loaded, ::testing::AnyOf(HasStatus(StatusCode::kOk), HasStatus(StatusCode::kNotFound)))
          << "seed " << seed << " step " << step << ": " << loaded.status();
      const std::string now = loaded.ok() ? EncodeState(*loaded) : "";
      if (status.ok()) {
        ASSERT_EQ(now, wanted) << "seed " << seed << " step " << step;
      } else if (fails && !wanted.empty()) {
        ASSERT_EQ(now, before) << "a failed save: seed " << seed << " step " << step;
      } else {
        ASSERT_TRUE(now == before || now == wanted) << "seed " << seed << " step " << step;
      }
      if (now.empty()) {
        model.erase(id);
      } else {
        model[id] = now;
      }
      std::vector<std::string> ids;
      for (const auto& [name, text] : model) ids.push_back(name);
      ASSERT_EQ(*next.List(), ids) << "seed " << seed << " step " << step;
    }
    EXPECT_GT(deaths, 0);
    EXPECT_GT(faults, 0);
    // What lies about after deaths goes with the next save or removal.
    StateStore store(FileSystem::Real(), dir.path());
    for (int i = 0; i < 4; ++i) ASSERT_OK(store.Remove("s" + std::to_string(i)));
    EXPECT_TRUE(FilesBelow(dir.path()).empty());
  }
}

}  // namespace
}  // namespace lamina::persist
