#include "node/claims_journal.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "base/framing.h"
#include "tests/testing/dying_file_system.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::node {
namespace {

using laminad::v1::ClaimRecord;
using testing::DyingFileSystem;
using testing::HasStatus;
using testing::TempDir;

ClaimRecord RecordOf(const std::string& id, uint64_t bytes) {
  ClaimRecord record;
  record.mutable_claim()->set_sandbox_id(id);
  record.mutable_claim()->set_bytes(bytes);
  return record;
}
ClaimRecord Gone(const std::string& id) {
  ClaimRecord record;
  record.mutable_claim()->set_sandbox_id(id);
  record.set_removed(true);
  return record;
}
std::map<std::string, uint64_t> Bytes(const ClaimRecords& records) {
  std::map<std::string, uint64_t> bytes;
  for (const auto& [id, record] : records) bytes[id] = record.claim().bytes();
  return bytes;
}

TEST(ClaimsJournal, KeepsTheLastOfEach) {
  TempDir dir;
  ClaimRecords records;
  {
    auto journal = ClaimsJournal::Open(FileSystem::Real(), dir / "j", records);
    ASSERT_OK(journal);
    EXPECT_TRUE(records.empty());
    for (const ClaimRecord& record :
         {RecordOf("a", 1), RecordOf("b", 2), RecordOf("a", 3), Gone("b"), RecordOf("c", 4)})
      ASSERT_OK((*journal)->Wait((*journal)->Add(record)));
  }
  for (int i = 0; i < 2; ++i) {  // opened again and again
    ASSERT_OK(ClaimsJournal::Open(FileSystem::Real(), dir / "j", records));
    EXPECT_EQ(Bytes(records), (std::map<std::string, uint64_t>{{"a", 3}, {"c", 4}}));
  }
}

// The same of both forms.
void ExpectOnlyTheLastMayBeCutShort(const std::string& head, const std::string& frame) {
  for (size_t cut = 0; cut < frame.size(); ++cut) {
    const auto records = DecodeJournal(head + frame.substr(0, cut), "j");
    ASSERT_OK(records) << cut;
    EXPECT_EQ(records->size(), 1u) << cut;
  }
  EXPECT_EQ(DecodeJournal(head + frame, "j")->size(), 2u);
  for (size_t at = 0; at < frame.size(); ++at) {
    std::string damaged = frame;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    EXPECT_EQ(DecodeJournal(head + damaged, "j")->size(), 1u) << at;  // as if it had been cut short
    EXPECT_THAT(DecodeJournal(head + damaged + frame, "j"),
                HasStatus(absl::StatusCode::kDataLoss, "not whole"))
        << at;
    EXPECT_THAT(DecodeJournal(head + damaged + frame, "j"),
                HasStatus(absl::StatusCode::kDataLoss, "move it away when no Lamina pod runs on this node"));
  }
}

TEST(ClaimsJournal, OnlyTheLastFrameMayBeCutShort) {
  const std::string head = EncodeJournal({{"a", RecordOf("a", 1)}});
  ExpectOnlyTheLastMayBeCutShort(head, EncodeJournal({{"b", RecordOf("b", 2)}}));
  // The first frame was put there as a whole: without it there is no journal.
  for (size_t at = 0; at < head.size(); ++at) {
    std::string damaged = head;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    EXPECT_THAT(DecodeJournal(damaged, "j"), HasStatus(absl::StatusCode::kDataLoss, "j: damaged (")) << at;
    EXPECT_THAT(DecodeJournal(head.substr(0, at), "j"),
                HasStatus(absl::StatusCode::kDataLoss, "move it away when no Lamina pod runs on this node"))
        << at;
  }
  EXPECT_THAT(DecodeJournal("{\"version\": 1}\n", "j"),
              HasStatus(absl::StatusCode::kDataLoss, "it does not begin with \"lamina-claims \""));
}

TEST(ClaimsJournal, ANewerFrameAnywhereIsLeftToWhoeverWroteIt) {
  const std::string head = EncodeJournal({{"a", RecordOf("a", 1)}});
  const std::string newer = EncodeFrame({"claims", 2, 3}, "x");
  for (const std::string& content : {newer, head + newer, head + newer + head})
    EXPECT_THAT(DecodeJournal(content, "j"),
                HasStatus(absl::StatusCode::kFailedPrecondition, "newer Lamina"));
}

TEST(ClaimsJournal, AFrameThatIsWholeAndNoBatchIsDamage) {
  EXPECT_THAT(DecodeJournal(EncodeFrame({"claims", 2, 2}, "\xff"), "j"),
              HasStatus(absl::StatusCode::kDataLoss, "the frame at byte 0 does not parse"));
}

// As the last Lamina wrote it whose frames were binary: two claims; one changed and the other gone; a third.
TEST(ClaimsJournal, VersionOneIsReadAndReplaced) {
  const std::string old =
      *FileSystem::Real().Read(LAMINA_SOURCE_DIR "/tests/data/formats/claims-1.journal", 1 << 20);
  const size_t second = old.find("LCfr", old.find("LCfr") + 1), third = old.find("LCfr", second + 1);
  using Claims = std::map<std::string, uint64_t>;
  EXPECT_EQ(Bytes(*DecodeJournal(old, "j")), (Claims{{"a", 3 << 20}, {"c", 4 << 20}}));
  EXPECT_EQ(Bytes(*DecodeJournal(old.substr(0, third), "j")), (Claims{{"a", 3 << 20}}));
  EXPECT_EQ(Bytes(*DecodeJournal(old.substr(0, second), "j")), (Claims{{"a", 1 << 20}, {"b", 2 << 20}}));
  ExpectOnlyTheLastMayBeCutShort(
      old.substr(0, second).substr(0, old.find('\n') + 1) + old.substr(second, third - second),
      old.substr(third));
  TempDir dir;
  ASSERT_OK(FileSystem::Real().WriteAndSync(dir / "j", old, 0600));
  ClaimRecords records;
  ASSERT_OK(ClaimsJournal::Open(FileSystem::Real(), dir / "j", records));
  EXPECT_EQ(Bytes(records), (Claims{{"a", 3 << 20}, {"c", 4 << 20}}));
  EXPECT_EQ(*FileSystem::Real().Read(dir / "j", 1 << 20), EncodeJournal(records)) << "of the present form";
}

// Random changes until the machine stops at one of its writes, those that replace a file grown large among
// them: whatever was acknowledged is there afterwards, and nothing else but what was under way. With the
// power goes what was not synced, too.
TEST(ClaimsJournal, ACrashAtAnyWriteLosesNothingThatWasAcknowledged) {
  std::map<std::string, int> stopped;
  for (int crash_at = 3; crash_at < 90; ++crash_at) {  // 3: the opening's own
    for (const auto& [part, power] : std::vector<std::pair<double, bool>>{
             {0.0, false}, {0.5, false}, {0.99, false}, {1.0, false}, {0.5, true}, {1.0, true}}) {
      TempDir dir;
      DyingFileSystem fs;
      fs.die_at = crash_at;
      fs.part = part;
      ClaimRecords records;
      std::map<std::string, uint64_t> acknowledged, under_way;
      auto journal = ClaimsJournal::Open(fs, dir / "j", records, /*rewrite_at=*/128);
      ASSERT_OK(journal);
      std::mt19937 random(static_cast<unsigned>(crash_at));
      for (bool lives = true; lives;) {
        const std::string id(1, static_cast<char>('a' + random() % 6));
        const ClaimRecord record = random() % 3 == 0 ? Gone(id) : RecordOf(id, 1 + random() % 1000);
        under_way = acknowledged;
        if (record.removed()) {
          under_way.erase(id);
        } else {
          under_way[id] = record.claim().bytes();
        }
        lives = (*journal)->Wait((*journal)->Add(record)).ok();
        if (lives) acknowledged = under_way;
      }
      const std::string step = fs.died_in;
      ++stopped[step];
      if (power) fs.LosePower();
      const std::string where = fmt::format("{} {} {}{}", crash_at, step, part, power ? " power" : "");
      ASSERT_OK(ClaimsJournal::Open(FileSystem::Real(), dir / "j", records)) << where;
      const auto found = Bytes(records);
      EXPECT_TRUE(found == acknowledged || found == under_way) << where;
      // The new file stands in the old one's place before its directory is known to be durable.
      if (part < 1 && (power || step != "sync")) {
        EXPECT_EQ(found, acknowledged) << where;
      }
    }
  }
  for (const char* step : {"append", "write", "rename", "sync"}) EXPECT_GT(stopped[step], 0) << step;
}

TEST(ClaimsJournal, AfterAFailedWriteTheFileIsReplaced) {
  TempDir dir;
  DyingFileSystem fs;
  ClaimRecords records;
  auto journal = ClaimsJournal::Open(fs, dir / "j", records);
  ASSERT_OK(journal);
  ASSERT_OK((*journal)->Wait((*journal)->Add(RecordOf("a", 1))));
  for (const double part : {0.3, 1.0}) {
    fs.part = part;
    fs.die_at = fs.calls;
    EXPECT_NOT_OK((*journal)->Wait((*journal)->Add(RecordOf("refused", 1))));
    EXPECT_NOT_OK((*journal)->Wait((*journal)->Add(Gone("a"))));
    EXPECT_NOT_OK((*journal)->Repair());
    fs.Revive();
    EXPECT_OK((*journal)->Repair());
    EXPECT_OK((*journal)->Repair());
    const auto content = FileSystem::Real().Read(dir / "j", 1 << 20);
    EXPECT_EQ(Bytes(*DecodeJournal(*content, "j")), (std::map<std::string, uint64_t>{{"a", 1}}));
  }
}

TEST(ClaimsJournal, GrowsOnlySoFar) {
  TempDir dir;
  ClaimRecords records;
  auto journal = ClaimsJournal::Open(FileSystem::Real(), dir / "j", records, 4 << 20);
  ASSERT_OK(journal);
  ClaimRecord record = RecordOf("a", 1);
  record.mutable_claim()->mutable_sizing()->add_reasons(std::string(256 * 1024, 'x'));
  for (int i = 0; i < 40; ++i) ASSERT_OK((*journal)->Wait((*journal)->Add(record)));
  EXPECT_LT(FileSystem::Real().Read(dir / "j", 64 << 20)->size(), size_t{6} << 20);
  ASSERT_OK(ClaimsJournal::Open(FileSystem::Real(), dir / "j", records));
  EXPECT_EQ(records.size(), 1u);
}

TEST(ClaimsJournal, ManyThreadsShareItsWrites) {
  TempDir dir;
  ClaimRecords records;
  auto journal = ClaimsJournal::Open(FileSystem::Real(), dir / "j", records);
  ASSERT_OK(journal);
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 16; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 8; ++i)
          EXPECT_OK(
              (*journal)->Wait((*journal)->Add(RecordOf("s" + std::to_string(t), static_cast<uint64_t>(i)))));
      });
    }
  }
  ASSERT_OK(ClaimsJournal::Open(FileSystem::Real(), dir / "j", records));
  ASSERT_EQ(records.size(), 16u);
  for (const auto& [id, bytes] : Bytes(records)) EXPECT_EQ(bytes, 7u) << id;
}

}  // namespace
}  // namespace lamina::node
