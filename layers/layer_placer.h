// Finds or makes the place of one layer, for one sandbox.
#pragma once

#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "layers/layer_images.h"
#include "layers/layer_source.h"
#include "layers/placement.h"
#include "layers/store_parts.h"

namespace lamina::layers {

// All layers of one container.
struct PlaceCall {
  std::string sandbox_id, domain;
  std::stop_source stop;  // ends the call; its token is that of `patience`
  Patience patience;
  Devices devices;  // guarded by the store's mutex
};

// Thread-safe: layers of one call are placed side by side.
class LayerPlacer {
 public:
  LayerPlacer(StoreParts& parts, LayerImages& images) : parts_(parts), images_(images) {}

  // In memory only: the caller saves the index before it answers. The sandbox is a user of the place. On
  // error it is not, and what was taken for it is given back.
  absl::StatusOr<Placement> Place(PlaceCall& call, const std::string& source);

 private:
  // What is to be placed, as far as it is known.
  struct Wanted {
    const LayerSource& source;
    std::string digest;
    LayerImage* image = nullptr;  // null: only where it is already
    bool made_here = false;       // the image was made for this call
    std::string why_scsi;
  };
  enum class Step {
    kNone,   // not there, or `why_scsi`
    kAgain,  // look again once the chores are done
    kUse,    // the sandbox is a user of it
    kCheck,  // pinned: its bytes have not been looked at since this process started
    kFill,   // taken, to be copied
    kCreateAndFill,
  };
  struct Taken {
    Placement placement;
    Handle handle;
  };

  // False: as kNone.
  absl::StatusOr<bool> PlaceInArena(PlaceCall& call, Wanted& wanted, Placement& placement);
  // What is done under the mutex: the region is found or taken.
  absl::StatusOr<Step> Take(PlaceCall& call, Wanted& wanted, Taken& taken, Chores& chores);
  Step Use(const PlaceCall& call, const FoundRegion& found, Taken& taken) REQUIRES(parts_.mutex);
  Step Reserve(const PlaceCall& call, const FoundRegion& room, Taken& taken) REQUIRES(parts_.mutex);
  void Fix(const FoundRegion& found, Taken& taken) REQUIRES(parts_.mutex);
  absl::Status Fill(const PlaceCall& call, const Wanted& wanted, Step step, Taken& taken);
  // A damaged region loses its name.
  absl::Status Check(const PlaceCall& call, const Wanted& wanted, const Taken& taken);

  absl::StatusOr<Placement> PlaceAsDisk(const PlaceCall& call, const Wanted& wanted);
  struct DiskFiles {
    std::string key, path;  // of the disk's record, of its image
    bool known = false, verified = false;
    VerityTree tree;
  };
  // Puts image and hash tree where they belong. The caller alone has the digest's files meanwhile.
  absl::Status PutFiles(const PlaceCall& call, const Wanted& wanted, DiskFiles& files);

  StoreParts& parts_;
  LayerImages& images_;
};

}  // namespace lamina::layers
