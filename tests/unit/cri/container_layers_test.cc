#include "cri/container_layers.h"

#include <gtest/gtest.h>

#include "base/ttrpc/fake_caller.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "vmm/fake_hypervisor.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using laminad::v1::Placement;
using std::chrono::seconds;
using testing::HasStatus;

constexpr ttrpc::Method<laminad::v1::PlaceLayersRequest, laminad::v1::PlaceLayersResponse> kPlaceLayers{
    "lamina.laminad.v1.Laminad", "PlaceLayers"};

class ContainerLayersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    persist::SandboxState state;
    state.sandbox_id = "pod";
    state.claim_generation = 7;
    book_.Restore(state);
    laminad_caller_->Handle(
        kPlaceLayers,
        [this](const laminad::v1::PlaceLayersRequest& r) -> absl::StatusOr<laminad::v1::PlaceLayersResponse> {
          EXPECT_EQ(r.sandbox_id(), "pod");
          EXPECT_EQ(r.generation(), 7U);
          laminad::v1::PlaceLayersResponse placed;
          for (const std::string& source : r.sources()) {
            Placement* place = placed.add_placements();
            place->set_layer_id(source);
            place->set_kind(kind_);
            place->set_image_path("/images/" + source);
            place->set_payload_bytes(4096);
          }
          return placed;
        });
    vmm::VmSpec spec;
    spec.name = "pod";
    auto vm = hypervisor_.Start(spec, {});
    ASSERT_OK(vm);
    vm_ = std::move(*vm);
    layers_.Attach(*vm_, agent_);
  }
  absl::Status Mount(const std::vector<std::string>& sources, ContainerLayers::Mounted& mounted) {
    return layers_.Mount("c", sources, seconds(5), mounted);
  }

  testing::TempDir dir_;
  Placement::Kind kind_ = Placement::SCSI;
  vmm::FakeHypervisor hypervisor_;
  ttrpc::FakeCaller agent_;
  const std::shared_ptr<ttrpc::FakeCaller> laminad_caller_ = std::make_shared<ttrpc::FakeCaller>();
  LaminadClient laminad_{laminad_caller_};
  StateBook book_{FileSystem::Real(), dir_ / "state"};
  std::unique_ptr<vmm::Vm> vm_;
  ContainerLayers layers_{4, book_, laminad_};
};

TEST_F(ContainerLayersTest, TheSameLayerTwiceInAnImageIsOne) {
  ContainerLayers::Mounted mounted;
  ASSERT_OK(Mount({"a", "b", "a"}, mounted));
  EXPECT_EQ(mounted.ids, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(vm_->scsi().disks(), 2U);
  ASSERT_OK(layers_.Unmount(mounted));
  EXPECT_EQ(vm_->scsi().disks(), 0U);
}

TEST_F(ContainerLayersTest, WhatFailedHalfwaySaysWhatThereIsToUndo) {
  hypervisor_.FailAt(static_cast<int>(hypervisor_.calls().size()) + 2, absl::InternalError("no disk"));
  ContainerLayers::Mounted mounted;
  EXPECT_THAT(Mount({"a", "b"}, mounted), HasStatus(StatusCode::kInternal, "no disk"));
  EXPECT_EQ(mounted.ids, (std::vector<std::string>{"a", "b"}));
  ASSERT_OK(layers_.Unmount(mounted));
  EXPECT_EQ(vm_->scsi().disks(), 0U);
  persist::SandboxState state;
  layers_.FillIn(state);
  EXPECT_TRUE(state.layers.empty());
  mounted = {};
  ASSERT_OK(Mount({"a", "b"}, mounted));
}

TEST_F(ContainerLayersTest, APlaceThatIsNoneIsRefused) {
  kind_ = Placement::UNKNOWN;
  ContainerLayers::Mounted mounted;
  EXPECT_THAT(Mount({"a"}, mounted), HasStatus(StatusCode::kInternal, "layer a without a place"));
}

TEST_F(ContainerLayersTest, AnotherGoesOnWhereItStopped) {
  ContainerLayers::Mounted web, db;
  ASSERT_OK(Mount({"a", "b"}, web));
  ASSERT_OK(Mount({"a"}, db));
  persist::SandboxState state = book_.Get();
  layers_.FillIn(state);
  state.containers["web"].layer_ids = web.ids;
  state.containers["db"].layer_ids = db.ids;
  ASSERT_EQ(state.layers.size(), 2U);

  ContainerLayers next(4, book_, laminad_);
  next.Restore(state);
  next.Attach(*vm_, agent_);
  const int mounts = agent_.Count("MountLayers");
  ContainerLayers::Mounted third;
  ASSERT_OK(next.Mount("c3", {"a"}, seconds(5), third));
  EXPECT_EQ(agent_.Count("MountLayers"), mounts) << "the guest has it already";
  ASSERT_OK(next.Unmount(third));
  ASSERT_OK(next.Unmount({web.ids, {}, {}}));
  persist::SandboxState left;
  next.FillIn(left);
  ASSERT_EQ(left.layers.size(), 1U);
  EXPECT_EQ(left.layers[0].id, "a");
}

}  // namespace
}  // namespace lamina::cri
