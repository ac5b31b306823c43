// The pure parts: the book, what goes where, and the index's text.
#include "layers/layer_book.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file_system.h"
#include "base/units.h"
#include "layers/layer_index.h"
#include "layers/placement.h"
#include "layers/sharing.h"
#include "tests/testing/status_matchers.h"

namespace lamina::layers {
namespace {

using testing::HasStatus;
using Kind = Room::Kind;

std::string Digest(char c) { return std::string(64, c); }

class LayerBookTest : public ::testing::Test {
 protected:
  LayerBookTest() {
    options_.dir = "/store";
    options_.arena_bytes = 16 * kMiB;
    options_.scsi_verity = true;
  }
  // Takes room for a layer, as a placing that has ended well.
  RegionRecord& Put(const std::string& digest, uint64_t bytes, const std::string& user) {
    Chores chores;
    Devices devices{{}, 1};
    Room room = *FindRoom(records_, options_, {"ns", bytes}, devices, chores);
    EXPECT_TRUE(room.kind == Kind::kFound || room.kind == Kind::kNewArena);
    room.arena->created = true;
    RegionRecord& region = room.arena->regions[digest];
    region.region = room.region;
    region.ready = region.verified = true;
    region.last_use = records_.use_clock++;
    if (!user.empty()) region.users.insert(user);
    return region;
  }
  DiskRecord& PutDisk(const std::string& digest, const std::string& path, const std::string& user) {
    DiskRecord& disk = records_.disks[DiskKey(options_.dir, digest, path)];
    disk.digest = digest;
    disk.path = path;
    disk.bytes = kMiB;
    disk.last_use = records_.use_clock++;
    if (!user.empty()) disk.users.insert(user);
    return disk;
  }
  Kind KindOf(Devices devices, uint64_t bytes, Chores& chores) {
    return FindRoom(records_, options_, {"ns", bytes}, devices, chores)->kind;
  }
  ArenaRecord& arena() { return records_.arenas.at("arena-1"); }

  StoreOptions options_;
  LayerRecords records_;
};

TEST_F(LayerBookTest, ADroppedRegionIsGivenAgainOnceItIsSettled) {
  Put(Digest('a'), 16 * kMiB, "");
  Chores chores;
  DropRegion(records_, arena(), Digest('a'), chores);
  ASSERT_EQ(chores.punches.size(), 1u);
  EXPECT_EQ(chores.punches[0].range.path, "/store/arena-1.arena");
  EXPECT_EQ(chores.punches[0].range.bytes, 16 * kMiB);
  Chores more;
  EXPECT_EQ(KindOf({{{"arena-1", 16 * kMiB}}, 0}, kMiB, more), Kind::kLater);
  EXPECT_EQ(KindOf({{}, 1}, kMiB, more), Kind::kLater) << "no second arena for that";
  Settle(records_, chores);
  EXPECT_EQ(KindOf({{{"arena-1", 16 * kMiB}}, 0}, kMiB, more), Kind::kFound);
  EXPECT_TRUE(more.empty());
}

TEST_F(LayerBookTest, RoomIsLookedForInTurn) {
  Put(Digest('a'), 16 * kMiB, "living");
  Chores chores;
  EXPECT_EQ(KindOf({{{"arena-1", 16 * kMiB}}, 0}, kMiB, chores), Kind::kNone);
  arena().regions.at(Digest('a')).users.clear();
  EXPECT_EQ(KindOf({{}, 0}, kMiB, chores), Kind::kNone) << "the VM cannot attach it";
  options_.max_arenas_per_domain = 1;
  EXPECT_EQ(KindOf({{}, 1}, kMiB, chores), Kind::kAfterChores);
  EXPECT_EQ(chores.punches.size(), 1u);
  Settle(records_, chores);
  Put(Digest('b'), 16 * kMiB, "living");
  options_.max_arenas_per_domain = 0;
  EXPECT_EQ(KindOf({{}, 1}, kMiB, chores), Kind::kNewArena);
  EXPECT_EQ(records_.arenas.size(), 2u);
  EXPECT_EQ(KindOf({{}, 1}, kMiB, chores), Kind::kLater) << "the second one's file is being created";
  EXPECT_EQ(DescribeArenas(records_).size(), 1u);
  EXPECT_EQ(IndexOf(records_).arenas.size(), 1u);
}

TEST_F(LayerBookTest, ANewArenaTakesNoOthersName) {
  Put(Digest('a'), 16 * kMiB, "living");
  records_.next_arena = 1;
  Chores chores;
  EXPECT_EQ(KindOf({{}, 1}, kMiB, chores), Kind::kNewArena);
  EXPECT_EQ(arena().regions.at(Digest('a')).users.count("living"), 1u);
  EXPECT_EQ(records_.arenas.count("arena-2"), 1u);
}

TEST_F(LayerBookTest, PinsKeepALayerAndTheLastOneDropsADamagedOne) {
  RegionRecord& region = Put(Digest('a'), kMiB, "");
  const Handle handle = region.region.handle;
  region.pins = 2;
  Chores chores;
  EXPECT_EQ(DropIdle(records_, options_, 0, chores).layers, 0u);
  MarkDamaged(records_, arena(), Digest('a'), chores);
  ASSERT_EQ(arena().regions.size(), 1u);
  EXPECT_TRUE(IsDamaged(arena().regions.begin()->first));
  EXPECT_TRUE(chores.empty());
  Unpin(records_, "arena-1", handle, chores);
  EXPECT_TRUE(arena().regions.empty());
  EXPECT_EQ(chores.punches.size(), 1u);
}

TEST_F(LayerBookTest, ADamagedRegionKeepsItsPlaceWhileAnyVmHasIt) {
  Put(Digest('a'), kMiB, "s1").pins = 1;
  Chores chores;
  MarkDamaged(records_, arena(), Digest('a'), chores);
  Devices devices{{}, 1};
  EXPECT_EQ(FindRegion(records_, "ns", Digest('a'), devices).region, nullptr);
  EXPECT_TRUE(chores.empty());
  EXPECT_FALSE(ReleaseUser(records_, options_, "other", chores));
  EXPECT_TRUE(ReleaseUser(records_, options_, "s1", chores));
  EXPECT_EQ(chores.punches.size(), 1u);
}

TEST_F(LayerBookTest, ADisksFilesGoWithItsLastRecordAndAreBusyUntilThen) {
  PutDisk(Digest('a'), "/snapshots/1", "s1");
  PutDisk(Digest('a'), "/snapshots/2", "s2");
  PutDisk(Digest('b'), "/store/" + Digest('b') + ".erofs", "s1");
  Chores chores;
  EXPECT_TRUE(ReleaseUser(records_, options_, "s1", chores));
  EXPECT_TRUE(chores.disks.empty()) << "the tree is still the other blob's; our own disk is kept as a cache";
  EXPECT_EQ(records_.disks.size(), 2u);
  EXPECT_TRUE(ReleaseUser(records_, options_, "s2", chores));
  ASSERT_EQ(chores.disks.size(), 1u);
  EXPECT_EQ(chores.disks[0].paths, std::vector<std::string>{"/store/" + Digest('a') + ".verity"});
  EXPECT_EQ(records_.busy_disks, std::set<std::string>{Digest('a')});
  Settle(records_, chores);
  EXPECT_TRUE(records_.busy_disks.empty());
  chores = Chores();
  records_.busy_disks = {Digest('b')};
  EXPECT_EQ(DropIdle(records_, options_, 0, chores).layers, 0u) << "another call has its files";
  records_.busy_disks.clear();
  EXPECT_EQ(DropIdle(records_, options_, 0, chores).bytes, kMiB);
  ASSERT_EQ(chores.disks.size(), 1u);
  EXPECT_EQ(chores.disks[0].paths.size(), 2u);
}

TEST_F(LayerBookTest, TheOldestIdleGoesFirst) {
  Put(Digest('a'), kMiB, "");
  PutDisk(Digest('b'), "/store/" + Digest('b') + ".erofs", "");
  Put(Digest('c'), kMiB, "");
  records_.digests = {{"source a", Digest('a')}, {"source c", Digest('c')}};
  Chores chores;
  const Dropped dropped = DropIdle(records_, options_, kMiB, chores);
  EXPECT_EQ(dropped.layers, 2u);
  EXPECT_EQ(dropped.bytes, 2 * kMiB);
  EXPECT_EQ(arena().regions.count(Digest('c')), 1u);
  ForgetSources(records_);
  EXPECT_EQ(records_.digests, (std::map<std::string, std::string>{{"source c", Digest('c')}}));
}

TEST_F(LayerBookTest, WhatASandboxWasNeverToldOfIsTakenBack) {
  const RegionRecord& region = Put(Digest('a'), kMiB, "s1");
  Placement placement;
  placement.layer_id = Digest('a');
  placement.arena_id = "arena-1";
  placement.offset = region.region.offset;
  Chores chores;
  UndoPlacement(records_, options_, "s1", placement, chores);
  EXPECT_EQ(region.users.count("s1"), 1u) << "it had it before";
  placement.new_user = true;
  UndoPlacement(records_, options_, "s1", placement, chores);
  EXPECT_TRUE(region.users.empty());
}

TEST_F(LayerBookTest, TheIndexGivesBackWhatWasPutIn) {
  Put(Digest('a'), 3 * kMiB, "s1");
  Put(Digest('b'), kMiB, "");
  arena().regions.at(Digest('b')).ready = false;
  PutDisk(Digest('c'), "/snapshots/\xff", "s2").why = "too large";
  PutDisk(Digest('d'), "/store/" + Digest('d') + ".erofs", "");
  records_.digests = {{"a source", Digest('a')}};
  const auto content = DecodeIndex(EncodeIndex(IndexOf(records_)), "/store");
  ASSERT_OK(content);
  const auto again = RestoreRecords(*content, options_);
  ASSERT_OK(again);
  EXPECT_EQ(again->digests, records_.digests);
  EXPECT_EQ(again->next_arena, 2u);
  EXPECT_EQ(again->use_clock, records_.use_clock);
  ASSERT_EQ(again->arenas.size(), 1u);
  const ArenaRecord& arena = again->arenas.at("arena-1");
  EXPECT_TRUE(arena.created);
  ASSERT_EQ(arena.regions.size(), 1u) << "what was not ready is not there";
  EXPECT_EQ(arena.regions.at(Digest('a')).users, std::set<std::string>{"s1"});
  EXPECT_FALSE(arena.regions.at(Digest('a')).verified);
  EXPECT_EQ(arena.pool->stats().payload_bytes, 3 * kMiB);
  ASSERT_EQ(again->disks.size(), 2u);
  EXPECT_EQ(again->disks.count(Digest('d')), 1u);
}

// As the last Lamina wrote it whose index was JSON alone.
TEST_F(LayerBookTest, AnIndexOfVersionTwoIsRead) {
  const std::string old =
      *FileSystem::Real().Read(LAMINA_SOURCE_DIR "/tests/data/formats/index-2.json", 1 << 20);
  const auto content = DecodeIndex(old, "/store");
  ASSERT_OK(content);
  EXPECT_EQ(content->next_arena, 3U);
  EXPECT_EQ(content->sources.at("/snapshots/1/fs"), Digest('a'));
  ASSERT_EQ(content->arenas.size(), 1U);
  EXPECT_EQ(content->arenas[0].domain, "shop");
  ASSERT_EQ(content->arenas[0].regions.size(), 1U);
  const IndexedRegion& region = content->arenas[0].regions[0];
  EXPECT_EQ(region.digest, Digest('a'));
  EXPECT_EQ(region.region.offset, 2 * kMiB);
  EXPECT_EQ(region.region.handle.generation, 4U);
  EXPECT_EQ(region.region.payload_bytes, 5000U);
  EXPECT_EQ(region.users, (std::set<std::string>{"pod-1", "pod-2"}));
  ASSERT_EQ(content->disks.size(), 1U);
  EXPECT_EQ(content->disks[0].why, "no device slot");
  const std::string again = EncodeIndex(*content);
  EXPECT_TRUE(again.starts_with("lamina-index 3 "));
  EXPECT_EQ(EncodeIndex(*DecodeIndex(again, "/store")), again);
  for (size_t at = 0; at < old.size(); ++at) {
    std::string bad = old;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    // Spaces between its words say nothing.
    if (const auto read = DecodeIndex(bad, "/store"); read.ok()) {
      EXPECT_EQ(EncodeIndex(*read), again) << at;
    } else {
      EXPECT_THAT(read, HasStatus(absl::StatusCode::kDataLoss, "remove /store when no Lamina pod runs"))
          << at;
    }
  }
}

TEST_F(LayerBookTest, ADamagedIndexNamesItselfAndWhatToDo) {
  Put(Digest('a'), 3 * kMiB, "s1");
  const std::string good = EncodeIndex(IndexOf(records_));
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    EXPECT_THAT(DecodeIndex(bad, "/store"),
                HasStatus(absl::StatusCode::kDataLoss, "remove /store when no Lamina pod runs"));
    EXPECT_THAT(DecodeIndex(good.substr(0, at), "/store"),
                HasStatus(absl::StatusCode::kDataLoss, "/store/index.json: damaged ("));
  }
}

TEST_F(LayerBookTest, RegionsThatOverlapAreNoIndex) {
  Put(Digest('a'), 3 * kMiB, "s1");
  IndexContent content = IndexOf(records_);
  content.arenas[0].regions.push_back(content.arenas[0].regions[0]);
  content.arenas[0].regions[1].digest = Digest('b');
  EXPECT_THAT(RestoreRecords(content, options_), HasStatus(absl::StatusCode::kFailedPrecondition, "arena-1"));
}

TEST_F(LayerBookTest, NamesThatCannotBeOnesAreLeftOut) {
  Put(Digest('a'), kMiB, "");
  IndexContent content = IndexOf(records_);
  content.arenas[0].regions[0].digest = "short";
  content.arenas.push_back(content.arenas[0]);
  content.arenas[1].id = "../arena";
  content.disks.push_back({"short", "", "", 1, 1, {}});
  const auto again = DecodeIndex(EncodeIndex(content), "/store");
  ASSERT_OK(again);
  ASSERT_EQ(again->arenas.size(), 1u);
  EXPECT_TRUE(again->arenas[0].regions.empty());
  EXPECT_TRUE(again->disks.empty());
}

TEST(Sharing, DomainsAreNamed) {
  const PodName pod{"s1", "team"}, nameless{"s1", ""};
  EXPECT_EQ(DomainOf(*ParseSharing("pod"), pod), "pod s1");
  EXPECT_EQ(DomainOf(*ParseSharing("namespace"), pod), "namespace team");
  EXPECT_EQ(DomainOf(*ParseSharing("namespace"), nameless), "pod s1");
  EXPECT_EQ(DomainOf(*ParseSharing("node"), nameless), "node");
  EXPECT_THAT(ParseSharing("all"), HasStatus(absl::StatusCode::kInvalidArgument, "all"));
}

}  // namespace
}  // namespace lamina::layers
