#include "guest/agent/kept_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/unique_fd.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::guest {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using agent::v1::FileEntry;
using agent::v1::PutFilesRequest;
using lamina::testing::HasStatus;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

ino_t Inode(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0 ? info.st_ino : 0;
}

// A request in words.
class Files {
 public:
  explicit Files(FileEntry::Kind root = FileEntry::FOLDER, const std::string& content = "") {
    request_.set_volume("v");
    request_.set_first(true);
    request_.set_last(true);
    Add("", root, content);
  }
  Files& Folder(const std::string& path) { return Add(path, FileEntry::FOLDER, ""); }
  Files& File(const std::string& path, const std::string& content) {
    return Add(path, FileEntry::FILE, content);
  }
  Files& Link(const std::string& path, const std::string& target) {
    return Add(path, FileEntry::LINK, target);
  }
  Files& Mode(uint32_t mode) {
    request_.mutable_entries(request_.entries_size() - 1)->set_mode(mode);
    return *this;
  }
  Files& Owner(uint32_t uid, uint32_t gid) {
    FileEntry* const entry = request_.mutable_entries(request_.entries_size() - 1);
    entry->set_uid(uid);
    entry->set_gid(gid);
    return *this;
  }
  // As the kubelet writes a version, all keys with this content.
  static Files Version(const std::string& version, const std::vector<std::string>& keys) {
    Files files;
    files.Folder("..v" + version);
    for (const std::string& key : keys) files.File("..v" + version + "/" + key, version);
    files.Link("..data", "..v" + version);
    for (const std::string& key : keys) files.Link(key, "..data/" + key);
    return files;
  }
  PutFilesRequest& request() { return request_; }

 private:
  Files& Add(const std::string& path, FileEntry::Kind kind, const std::string& content) {
    FileEntry& entry = *request_.add_entries();
    entry.set_path(path);
    entry.set_kind(kind);
    entry.set_mode(kind == FileEntry::FOLDER ? 0755 : 0644);
    entry.set_uid(geteuid());
    entry.set_gid(getegid());
    entry.set_content(content);
    return *this;
  }
  PutFilesRequest request_;
};

// The events of a folder, in words.
class Watcher {
 public:
  explicit Watcher(const std::string& path) : fd_(inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) {
    EXPECT_GT(inotify_add_watch(fd_.get(), path.c_str(), IN_ALL_EVENTS & ~(IN_OPEN | IN_ACCESS | IN_CLOSE)),
              0);
  }
  std::vector<std::string> Heard() {
    std::vector<std::string> heard;
    alignas(inotify_event) char buffer[16384];
    for (ssize_t n = 0; (n = read(fd_.get(), buffer, sizeof buffer)) > 0;) {
      for (ssize_t at = 0; at < n;) {
        inotify_event event;
        memcpy(&event, buffer + at, sizeof event);
        const std::string name = event.len > 0 ? buffer + at + sizeof event : "";
        heard.push_back(Word(event.mask) + " " + name);
        at += static_cast<ssize_t>(sizeof event + event.len);
      }
    }
    return heard;
  }

 private:
  static std::string Word(uint32_t mask) {
    for (const auto& [bit, word] : {std::pair{IN_CREATE, "create"},
                                    {IN_MOVED_FROM, "from"},
                                    {IN_MOVED_TO, "to"},
                                    {IN_DELETE, "delete"},
                                    {IN_ATTRIB, "attrib"},
                                    {IN_MODIFY, "modify"},
                                    {IN_DELETE_SELF, "gone"},
                                    {IN_IGNORED, "ignored"}}) {
      if ((mask & static_cast<uint32_t>(bit)) != 0) return word;
    }
    return "other";
  }
  const UniqueFd fd_;
};

class KeptFilesTest : public ::testing::Test {
 protected:
  absl::Status Put(Files files) { return files_.Put(files.request()); }
  std::string At(const std::string& path) const { return dir_ / ("volumes/v/data/" + path); }
  std::vector<std::string> Names(const std::string& path) const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

  testing::TempDir dir_;
  KeptFiles files_{{.directory = dir_ / "volumes", .mount = false, .grace = std::chrono::milliseconds(1)}};
};

TEST_F(KeptFilesTest, AFirstFillIsAsItWasGiven) {
  Files files = Files::Version("1", {"key", "\xC3\xA4\xE2\x82\xAC"});
  files.Folder("plain").Mode(02750).File("plain/file", "x").Mode(0400);
  files.request().mutable_entries(0)->set_mode(02770);
  files.request().mutable_entries(2)->set_modified_unix_nanos(1'600'000'000'123'456'789);
  ASSERT_OK(files_.Put(files.request()));
  EXPECT_EQ(ReadAll(At("key")), "1");
  EXPECT_EQ(ReadAll(At("\xC3\xA4\xE2\x82\xAC")), "1");
  struct stat info {};
  ASSERT_EQ(stat(At("").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 02770u);
  ASSERT_EQ(stat(At("plain").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 02750u);
  ASSERT_EQ(stat(At("plain/file").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0400u);
  ASSERT_EQ(stat(At("key").c_str(), &info), 0);
  EXPECT_EQ(info.st_mtim.tv_sec, 1'600'000'000);
  EXPECT_EQ(info.st_mtim.tv_nsec, 123'456'789);
  EXPECT_EQ(Names(dir_ / "volumes/v"), std::vector<std::string>{"data"}) << "nothing beside it";
}

TEST_F(KeptFilesTest, AWatcherHearsWhatTheKubeletsWriterWouldTellIt) {
  ASSERT_OK(Put(Files::Version("1", {"gone", "key"})));
  Watcher watcher(At(""));
  Watcher file(At("..v1/key"));
  ASSERT_OK(Put(Files::Version("2", {"key", "new"})));
  EXPECT_EQ(watcher.Heard(),
            (std::vector<std::string>{"create ..v2", "attrib ..v2", "create ..data_tmp", "from ..data_tmp",
                                      "to ..data", "create new", "delete gone", "delete ..v1"}));
  EXPECT_EQ(file.Heard(), (std::vector<std::string>{"attrib ", "gone ", "ignored "}))
      << "who watches the file itself hears that it went";
  EXPECT_EQ(ReadAll(At("key")), "2");
  EXPECT_EQ(Names(At("")), (std::vector<std::string>{"..data", "..v2", "key", "new"}));
}

TEST_F(KeptFilesTest, WhatDidNotChangeIsLeftAlone) {
  Files files = Files::Version("1", {"a", "b"});
  files.Folder("plain").File("plain/same", "same").File("plain/other", "1");
  ASSERT_OK(files_.Put(files.request()));
  const ino_t same = Inode(At("plain/same")), key = Inode(At("..v1/a")), link = Inode(At("a")),
              other = Inode(At("plain/other"));
  Watcher watcher(At("")), plain(At("plain"));
  ASSERT_OK(files_.Put(files.request()));
  EXPECT_TRUE(watcher.Heard().empty());
  EXPECT_TRUE(plain.Heard().empty());
  files.request().mutable_entries(files.request().entries_size() - 1)->set_content("2");
  ASSERT_OK(files_.Put(files.request()));
  EXPECT_EQ(plain.Heard(), std::vector<std::string>{"to other"});
  EXPECT_EQ(ReadAll(At("plain/other")), "2");
  EXPECT_NE(Inode(At("plain/other")), other) << "who reads the old one reads it to its end";
  EXPECT_EQ(Inode(At("plain/same")), same);
  EXPECT_EQ(Inode(At("..v1/a")), key);
  EXPECT_EQ(Inode(At("a")), link);
  // Of a mode that changes nobody gets another file.
  files.Mode(0600);
  ASSERT_OK(files_.Put(files.request()));
  EXPECT_EQ(plain.Heard(), std::vector<std::string>{"attrib other"});
}

TEST_F(KeptFilesTest, ASingleFileKeepsItsInode) {
  ASSERT_OK(Put(Files(FileEntry::FILE, "127.0.0.1 localhost, and more\n")));
  const std::string path = dir_ / "volumes/v/data";
  const ino_t inode = Inode(path);
  const UniqueFd open_before(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  Watcher watcher(path);
  for (const std::string content :
       {"shorter\n", "a good deal longer than what was there at the beginning\n", ""}) {
    ASSERT_OK(Put(Files(FileEntry::FILE, content)));
    EXPECT_EQ(ReadAll(path), content);
    EXPECT_EQ(Inode(path), inode);
    EXPECT_FALSE(watcher.Heard().empty());
    std::string seen(100, '\0');
    const ssize_t n = pread(open_before.get(), seen.data(), seen.size(), 0);
    EXPECT_EQ(seen.substr(0, static_cast<size_t>(std::max<ssize_t>(n, 0))), content);
  }
  EXPECT_THAT(Put(Files()), HasStatus(StatusCode::kFailedPrecondition, "file"));
  EXPECT_EQ(Inode(path), inode);
}

TEST_F(KeptFilesTest, KindsMayChange) {
  ASSERT_OK(Put(Files().File("x", "file").Folder("y").File("y/in", "1").Link("z", "x")));
  ASSERT_OK(Put(Files().Folder("x").File("x/in", "2").Link("y", "x").File("z", "file")));
  EXPECT_EQ(ReadAll(At("x/in")), "2");
  EXPECT_EQ(fs::read_symlink(At("y")), "x");
  EXPECT_FALSE(fs::is_symlink(At("z")));
  EXPECT_EQ(ReadAll(At("z")), "file");
  ASSERT_OK(Put(Files().Link("x", "nowhere").File("y", "y").Folder("z")));
  EXPECT_EQ(fs::read_symlink(At("x")), "nowhere");
  EXPECT_EQ(ReadAll(At("y")), "y");
  EXPECT_TRUE(fs::is_directory(At("z")));
  EXPECT_EQ(Names(At("")), (std::vector<std::string>{"x", "y", "z"}));
}

TEST_F(KeptFilesTest, NamesLikeTheSwapsOwnAreKeysLikeOthers) {
  ASSERT_OK(Put(Files().Link("a", "1").Link("a_tmp", "t1").File("b_tmp", "x").Link("b", "1")));
  ASSERT_OK(Put(Files().Link("a", "2").Link("a_tmp", "t2").File("b_tmp", "y").Link("b", "2")));
  EXPECT_EQ(fs::read_symlink(At("a")), "2");
  EXPECT_EQ(fs::read_symlink(At("a_tmp")), "t2");
  EXPECT_EQ(ReadAll(At("b_tmp")), "y");
  EXPECT_EQ(fs::read_symlink(At("b")), "2");
}

// Readers never see a mix, nor miss a key.
TEST_F(KeptFilesTest, TwoHundredSwapsUnderReaders) {
  constexpr std::chrono::milliseconds kGrace{10};
  KeptFiles files({.directory = dir_ / "volumes", .mount = false, .grace = kGrace});
  const std::vector<std::string> keys = {"a", "b", "c", "d"};
  const auto put = [&](int version) {
    Files request = Files::Version(std::to_string(version), keys);
    return files.Put(request.request());
  };
  ASSERT_OK(put(0));
  std::atomic<bool> over{false};
  std::atomic<int> missing{0}, mixed{0}, reads{0};
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 3; ++reader) {
    readers.emplace_back([&, reader] {
      int last = 0;
      while (!over) {
        const auto start = std::chrono::steady_clock::now();
        const std::string text = ReadAll(At(keys[static_cast<size_t>(reader)]));
        ++reads;
        if (text.empty()) {
          // Unless it was held up on its way for as long as the old folder is kept.
          missing += std::chrono::steady_clock::now() - start < kGrace ? 1 : 0;
          continue;
        }
        // Time goes one way: a later look shows the same version or a newer one.
        const int version = std::stoi(text);
        if (version < last) ++mixed;
        last = version;
        // All keys of the folder that the link names are of one version.
        const UniqueFd data(open(At("..data").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        std::string seen;
        for (const std::string& key : keys) {
          const UniqueFd file(openat(data.get(), key.c_str(), O_RDONLY | O_CLOEXEC));
          char buffer[16];
          const ssize_t n = file ? read(file.get(), buffer, sizeof buffer) : 0;
          const std::string one(buffer, static_cast<size_t>(std::max<ssize_t>(n, 0)));
          if (n <= 0)
            break;  // the folder has been removed since: whoever holds one for long has that on a host too
          if (!seen.empty() && one != seen) ++mixed;
          seen = one;
        }
      }
    });
  }
  for (int version = 1; version <= 200; ++version) EXPECT_OK(put(version));
  over = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(missing, 0) << "of " << reads;
  EXPECT_EQ(mixed, 0) << "of " << reads;
  EXPECT_GT(reads, 200);
  EXPECT_EQ(Names(At("")), (std::vector<std::string>{"..data", "..v200", "a", "b", "c", "d"}));
}

TEST_F(KeptFilesTest, NothingIsSeenBeforeTheLastPiece) {
  ASSERT_OK(Put(Files::Version("1", {"key"})));
  Files all = Files::Version("2", {"key"});
  PutFilesRequest piece = all.request();
  piece.set_last(false);
  ASSERT_OK(files_.Put(piece));
  EXPECT_EQ(ReadAll(At("key")), "1");
  PutFilesRequest rest;
  rest.set_volume("v");
  rest.set_last(true);
  FileEntry& more = *rest.add_entries();
  more = piece.entries(2);
  more.set_offset(1);
  more.set_content(" and the rest");
  ASSERT_OK(files_.Put(rest));
  EXPECT_EQ(ReadAll(At("key")), "2 and the rest");
  EXPECT_THAT(files_.Put(rest), HasStatus(StatusCode::kFailedPrecondition, "from the first")) << "it is over";
  // A series that was given up is forgotten by the next.
  ASSERT_OK(files_.Put(piece));
  ASSERT_OK(Put(Files::Version("3", {"key"})));
  EXPECT_EQ(ReadAll(At("key")), "3");
  // A piece that does not fit leaves all as it was, and ends the series.
  ASSERT_OK(files_.Put(piece));
  rest.mutable_entries(0)->set_offset(5);
  EXPECT_THAT(files_.Put(rest), HasStatus(StatusCode::kInvalidArgument, "offset 5 after 1 bytes"));
  EXPECT_EQ(ReadAll(At("key")), "3");
  rest.mutable_entries(0)->set_offset(1);
  EXPECT_NOT_OK(files_.Put(rest));
  EXPECT_EQ(Names(dir_ / "volumes/v"), std::vector<std::string>{"data"});
}

TEST_F(KeptFilesTest, HostilePathsAreRefusedAndChangeNothing) {
  std::ofstream(dir_ / "victim") << "untouched";
  ASSERT_OK(Put(Files().File("kept", "kept")));
  for (const std::string& path : std::initializer_list<std::string>{
           "..", "../x", "a/../b", "/etc/x", "a//b", "a/", "/", ".", "./a", std::string("a\0b", 3),
           std::string(256, 'n'), std::string(5000, 'n'), "missing/child"}) {
    EXPECT_NOT_OK(Put(Files().File(path, "bad"))) << path;
    EXPECT_NOT_OK(Put(Files().Folder(path))) << path;
    EXPECT_NOT_OK(Put(Files().Link(path, "x"))) << path;
  }
  std::string deep = "d";
  Files files;
  for (size_t depth = 0; depth < kMaxKeptDepth + 1; ++depth, deep += "/d") files.Folder(deep);
  EXPECT_THAT(files_.Put(files.Folder(deep).request()), HasStatus(StatusCode::kInvalidArgument, "parts"));
  // A link is never a way out, nor in.
  EXPECT_NOT_OK(Put(Files().Link("out", "../../..").File("out/victim", "bad")));
  EXPECT_NOT_OK(Put(Files().Link("out", dir_.path()).Folder("out/new")));
  EXPECT_NOT_OK(Put(Files().Link("f", dir_ / "victim").File("f", "bad")));
  EXPECT_NOT_OK(Put(Files().File("twice", "1").File("twice", "2")));
  EXPECT_NOT_OK(Put(Files().File("mode", "").Mode(010000)));
  EXPECT_NOT_OK(Put(Files().Link("empty", "")));
  EXPECT_NOT_OK(Put(Files().Link("long", std::string(5000, 'x'))));
  EXPECT_NOT_OK(Put(Files(FileEntry::LINK, "x")));
  for (const char* volume : {"", "..", "a/b", ".hidden", "/"}) {
    Files named;
    named.request().set_volume(volume);
    EXPECT_THAT(files_.Put(named.request()), HasStatus(StatusCode::kInvalidArgument)) << volume;
    EXPECT_NOT_OK(files_.Read(volume));
    EXPECT_NOT_OK(files_.Remove(volume));
  }
  PutFilesRequest empty;
  empty.set_volume("v");
  empty.set_first(true);
  empty.set_last(true);
  EXPECT_NOT_OK(files_.Put(empty));
  EXPECT_EQ(ReadAll(dir_ / "victim"), "untouched");
  EXPECT_EQ(Names(At("")), std::vector<std::string>{"kept"});
  EXPECT_EQ(ReadAll(At("kept")), "kept");
  EXPECT_EQ(Names(dir_ / "volumes/v"), std::vector<std::string>{"data"});
}

// What a container that may write there has made of the volume.
TEST_F(KeptFilesTest, LinksThatAContainerMadeAreNotFollowed) {
  fs::create_directories(dir_ / "outside/sub");
  std::ofstream(dir_ / "outside/sub/file") << "mine";
  ASSERT_OK(Put(Files().Folder("sub").File("sub/file", "1").File("file", "1")));
  fs::remove_all(At("sub"));
  fs::create_symlink(dir_ / "outside/sub", At("sub"));
  fs::remove(At("file"));
  fs::create_symlink(dir_ / "outside/sub/file", At("file"));
  fs::create_directories(At("junk/deep"));
  fs::create_symlink(dir_ / "outside", At("junk/deep/out"));
  ASSERT_OK(Put(Files().Folder("sub").File("sub/file", "2").File("file", "2")));
  EXPECT_EQ(ReadAll(dir_ / "outside/sub/file"), "mine");
  EXPECT_EQ(ReadAll(At("sub/file")), "2");
  EXPECT_EQ(ReadAll(At("file")), "2");
  EXPECT_FALSE(fs::is_symlink(At("sub")));
  EXPECT_EQ(Names(At("")), (std::vector<std::string>{"file", "sub"}));
}

TEST_F(KeptFilesTest, LimitsHold) {
  Files bytes;
  bytes.File("a", std::string(kMaxKeptBytes, 'a'));
  EXPECT_OK(files_.Put(bytes.request()));
  EXPECT_THAT(files_.Put(bytes.File("b", "b").request()), HasStatus(StatusCode::kResourceExhausted, "bytes"));
  EXPECT_EQ(Names(At("")), std::vector<std::string>{"a"});
  Files many;
  for (size_t i = 0; i < kMaxKeptFiles; ++i) many.File("f" + std::to_string(i), "");
  EXPECT_OK(files_.Put(many.request()));
  EXPECT_THAT(files_.Put(many.File("more", "").request()),
              HasStatus(StatusCode::kResourceExhausted, "files"));
  EXPECT_EQ(Names(At("")).size(), kMaxKeptFiles);
}

TEST_F(KeptFilesTest, AllVolumesTogetherAreBoundedToo) {
  const auto put = [&](const std::string& volume, size_t bytes) {
    Files files(FileEntry::FILE, std::string(bytes, 'x'));
    files.request().set_volume(volume);
    return files_.Put(files.request());
  };
  constexpr size_t kMost = kMaxKeptTotalBytes / kMaxKeptBytes;
  for (size_t i = 0; i < kMost; ++i) ASSERT_OK(put("v" + std::to_string(i), kMaxKeptBytes));
  EXPECT_THAT(put("more", 1), HasStatus(StatusCode::kResourceExhausted, "together"));
  EXPECT_FALSE(fs::exists(dir_ / "volumes/more"));
  ASSERT_OK(put("v0", kMaxKeptBytes)) << "in its own place";
  ASSERT_OK(put("v0", 1));
  ASSERT_OK(put("more", 1));
  EXPECT_THAT(put("v0", kMaxKeptBytes), HasStatus(StatusCode::kResourceExhausted, "together"));
  ASSERT_OK(files_.Remove("v1"));
  ASSERT_OK(put("v0", kMaxKeptBytes));
}

TEST_F(KeptFilesTest, OfAFirstFillThatFailsNothingStays) {
  EXPECT_NOT_OK(Put(Files().File("a", "x").File("../b", "x")));
  EXPECT_FALSE(fs::exists(dir_ / "volumes/v"));
  ASSERT_OK(Put(Files().File("a", "x")));
  EXPECT_OK(files_.Remove("v"));
  EXPECT_OK(files_.Remove("v")) << "again";
  EXPECT_FALSE(fs::exists(dir_ / "volumes/v"));
  // What lies there and was not put by it is not its own.
  fs::create_directories(dir_ / "volumes/disk");
  EXPECT_OK(files_.Remove("disk"));
  ASSERT_OK(Put(Files().File("a", "x")));
  files_.RemoveAll();
  EXPECT_EQ(Names(dir_ / "volumes"), std::vector<std::string>{"disk"});
}

TEST_F(KeptFilesTest, TheEndOfAFileIsRead) {
  EXPECT_THAT(files_.Read("v"), HasStatus(StatusCode::kNotFound));
  ASSERT_OK(Put(Files(FileEntry::FILE, "")));
  const std::string path = dir_ / "volumes/v/data";
  ASSERT_OK_AND_ASSIGN(auto answer, files_.Read("v"));
  EXPECT_EQ(answer.content(), "");
  std::ofstream(path) << "the reason";
  ASSERT_OK_AND_ASSIGN(answer, files_.Read("v"));
  EXPECT_EQ(answer.content(), "the reason");
  std::ofstream(path) << std::string(200'000, 'x') << "end";
  ASSERT_OK_AND_ASSIGN(answer, files_.Read("v"));
  EXPECT_EQ(answer.content().size(), kMaxReadFileBytes);
  EXPECT_EQ(answer.content().substr(kMaxReadFileBytes - 4), "xend");
  EXPECT_EQ(answer.size(), 200'003u);
  // Nothing but the file itself.
  fs::remove(path);
  fs::create_symlink("/etc/passwd", path);
  EXPECT_THAT(files_.Read("v"), HasStatus(StatusCode::kFailedPrecondition, "link"));
  fs::remove(path);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(files_.Read("v"), HasStatus(StatusCode::kFailedPrecondition, "not a file"));
  fs::remove(path);
  ASSERT_OK(Put(Files()));
  EXPECT_THAT(files_.Read("v"), HasStatus(StatusCode::kFailedPrecondition, "not a file"));
}

// A tmpfs of the volume's own, in a mount namespace of a thread's own.
TEST_F(KeptFilesTest, MountedItIsBoundedAndNothingSpecial) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  std::thread([&] {
    ASSERT_EQ(unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    KeptFiles files({.directory = dir_ / "volumes", .grace = std::chrono::milliseconds(1)});
    Files request = Files::Version("1", {"key"});
    request.Folder("owned").Owner(1000, 3000).Mode(02770);
    ASSERT_OK(files.Put(request.request()));
    struct statvfs info {};
    ASSERT_EQ(statvfs(At("").c_str(), &info), 0);
    EXPECT_EQ(info.f_flag & (ST_NOSUID | ST_NODEV | ST_NOEXEC), unsigned{ST_NOSUID | ST_NODEV});
    EXPECT_EQ(info.f_blocks * info.f_frsize, uint64_t{48} << 20);
    struct stat owned {};
    ASSERT_EQ(stat(At("owned").c_str(), &owned), 0);
    EXPECT_EQ(owned.st_uid, 1000u);
    EXPECT_EQ(owned.st_gid, 3000u);
    EXPECT_EQ(owned.st_mode & 07777, 02770u);
    // Full: the old content stays, and once there is room again, the new one comes.
    const std::string fill = At("fill");
    std::ofstream(fill) << std::string(size_t{48} << 20, 'x');
    Files next = Files::Version("2", {"key"});
    EXPECT_THAT(files.Put(next.request()), HasStatus(StatusCode::kResourceExhausted, "volume v"));
    EXPECT_EQ(ReadAll(At("key")), "1");
    fs::remove(fill);
    EXPECT_OK(files.Put(next.request()));
    EXPECT_EQ(ReadAll(At("key")), "2");
    const UniqueFd user(open(At("..v2/key").c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_OK(files.Remove("v")) << "in use";
    EXPECT_FALSE(fs::exists(dir_ / "volumes/v"));
  }).join();
}

}  // namespace
}  // namespace lamina::guest
