#include "cri/guest_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "base/ttrpc/fake_caller.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using agent::v1::Empty;
using agent::v1::PutFilesRequest;
using testing::HasStatus;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

class GuestFilesTest : public ::testing::Test {
 protected:
  GuestFilesTest() {
    agent_.Handle(guest::kPutFiles, [this](const PutFilesRequest& request) -> absl::StatusOr<Empty> {
      largest_ = std::max(largest_, request.ByteSizeLong());
      requests_.push_back(request);
      return Empty();
    });
  }
  // The files that the requests make, put together.
  std::map<std::string, std::string> Files() const {
    std::map<std::string, std::string> files;
    for (const PutFilesRequest& request : requests_) {
      for (const auto& entry : request.entries()) {
        if (entry.kind() != agent::v1::FileEntry::FILE) continue;
        EXPECT_EQ(files[entry.path()].size(), entry.offset());
        files[entry.path()] += entry.content();
      }
    }
    return files;
  }

  testing::TempDir dir_;
  ttrpc::FakeCaller agent_;
  std::vector<PutFilesRequest> requests_;
  size_t largest_ = 0;
};

TEST_F(GuestFilesTest, ASmallVolumeIsOneRequest) {
  fs::create_directories(dir_ / "v");
  std::ofstream(dir_ / "v/key") << "value";
  fs::create_symlink("key", dir_ / "v/link");
  ASSERT_OK(PushFiles(agent_, "v1", dir_ / "v"));
  ASSERT_EQ(requests_.size(), 1u);
  EXPECT_EQ(requests_[0].volume(), "v1");
  EXPECT_TRUE(requests_[0].first());
  EXPECT_TRUE(requests_[0].last());
  ASSERT_EQ(requests_[0].entries_size(), 3);
  EXPECT_EQ(requests_[0].entries(0).kind(), agent::v1::FileEntry::FOLDER);
  EXPECT_EQ(requests_[0].entries(1).content(), "value");
  EXPECT_EQ(requests_[0].entries(2).kind(), agent::v1::FileEntry::LINK);
  EXPECT_EQ(requests_[0].entries(2).content(), "key");
  EXPECT_EQ(KeptFilesPath("v1"), "/run/lamina/volumes/v1/data");
}

TEST_F(GuestFilesTest, ALargeOneIsCutAndNothingOfItIsLost) {
  fs::create_directories(dir_ / "v");
  std::map<std::string, std::string> expected;
  for (int i = 0; i < 40; ++i) {
    const std::string name = "f" + std::to_string(i);
    std::string& content = expected[name];
    for (int k = 0; k < i * 4000; ++k) content += static_cast<char>('a' + (k * 7 + i) % 26);
    std::ofstream(dir_ / ("v/" + name)) << content;
  }
  ASSERT_OK(PushFiles(agent_, "v", dir_ / "v"));
  EXPECT_GT(requests_.size(), 10u);
  EXPECT_LT(largest_, size_t{300} * 1024);
  for (size_t i = 0; i < requests_.size(); ++i) {
    EXPECT_EQ(requests_[i].first(), i == 0);
    EXPECT_EQ(requests_[i].last(), i + 1 == requests_.size());
  }
  EXPECT_EQ(Files(), expected);
}

TEST_F(GuestFilesTest, ALostConnectionMeansFromTheBeginning) {
  fs::create_directories(dir_ / "v");
  std::ofstream(dir_ / "v/a") << std::string(600 * 1024, 'a');
  agent_.FailAt(1);
  ASSERT_OK(PushFiles(agent_, "v", dir_ / "v"));
  int firsts = 0;
  for (const PutFilesRequest& request : requests_) firsts += request.first() ? 1 : 0;
  EXPECT_EQ(firsts, 2);
  agent_.SetConnected(false);
  agent_.FailAt(static_cast<int>(agent_.calls().size()));
  EXPECT_THAT(PushFiles(agent_, "v", dir_ / "v"), HasStatus(StatusCode::kUnavailable, "volume v"));
}

TEST_F(GuestFilesTest, WhatTheGuestRefusesIsTold) {
  std::ofstream(dir_ / "f") << "x";
  agent_.FailAt(0, absl::ResourceExhaustedError("no memory"));
  EXPECT_THAT(PushFiles(agent_, "v", dir_ / "f"), HasStatus(StatusCode::kResourceExhausted, "volume v"));
  EXPECT_EQ(agent_.Count("PutFiles"), 1);
}

TEST_F(GuestFilesTest, ATerminationLogIsBroughtIntoItsFileAndNoOther) {
  std::string content = "the reason";
  agent_.Handle(guest::kReadFile, [&](const agent::v1::ReadFileRequest& request) {
    EXPECT_EQ(request.volume(), "log");
    agent::v1::ReadFileResponse answer;
    answer.set_content(content);
    return absl::StatusOr<agent::v1::ReadFileResponse>(answer);
  });
  const std::string log = dir_ / "log";
  std::ofstream(log) << "what stood there before was longer";
  ASSERT_EQ(chmod(log.c_str(), 0666), 0);
  struct stat before {
  }, after{};
  ASSERT_EQ(stat(log.c_str(), &before), 0);
  ASSERT_OK(BringFile(agent_, "log", log));
  EXPECT_EQ(ReadAll(log), "the reason");
  ASSERT_EQ(stat(log.c_str(), &after), 0);
  EXPECT_EQ(after.st_ino, before.st_ino);
  EXPECT_EQ(after.st_mode, before.st_mode);
  // A guest that says more than it may.
  content = std::string(100'000, 'x') + "end";
  ASSERT_OK(BringFile(agent_, "log", log));
  EXPECT_EQ(ReadAll(log).size(), size_t{64} * 1024);
  EXPECT_EQ(ReadAll(log).substr(65533), "end");

  EXPECT_THAT(BringFile(agent_, "log", dir_ / "none"), HasStatus(StatusCode::kNotFound, "none"));
  EXPECT_FALSE(fs::exists(dir_ / "none"));
  fs::create_symlink(log, dir_ / "link");
  EXPECT_NOT_OK(BringFile(agent_, "log", dir_ / "link"));
  ASSERT_EQ(mkfifo((dir_ / "pipe").c_str(), 0600), 0);
  EXPECT_NOT_OK(BringFile(agent_, "log", dir_ / "pipe"));
}

}  // namespace
}  // namespace lamina::cri
