// Where a layer's image comes from: a disk that holds it, the snapshotter's blob, another domain's arena, or
// mkfs.erofs.
#pragma once

#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "layers/conversions.h"
#include "layers/layer_image.h"
#include "layers/layer_source.h"
#include "layers/store_parts.h"

namespace lamina::layers {

// Thread-safe, and copied into the conversions' threads.
class LayerImages {
 public:
  explicit LayerImages(StoreParts& parts) : parts_(parts) {}

  // The image of the source whose ticket it is; afterwards its digest is known. A damaged disk is made anew;
  // DataLoss for a blob that changed without having been written.
  absl::StatusOr<LayerImagePtr> Obtain(const LayerSource& source, Conversions::Ticket& ticket,
                                       const Patience& patience);

 private:
  struct PinnedDisk {
    LayerImagePtr image;  // null: there is none
    bool verified = false;
  };
  absl::StatusOr<PinnedDisk> PinDisk(const LayerSource& source, const std::string& digest);
  absl::StatusOr<LayerImagePtr> Make(const LayerSource& source, const std::string& digest,
                                     const std::stop_token& stop);
  // Null: the disk is damaged, or there is none.
  absl::StatusOr<LayerImagePtr> FromDisk(const LayerSource& source, const std::string& digest,
                                         const std::stop_token& stop);
  absl::StatusOr<LayerImagePtr> FromBlob(const LayerSource& source, const std::string& digest,
                                         const std::stop_token& stop);
  absl::StatusOr<LayerImagePtr> Convert(const LayerSource& source, const std::string& digest,
                                        const std::stop_token& stop);
  // True: `image` is at `to`. False: no other domain has it whole, or it is larger than `most_bytes`.
  absl::StatusOr<bool> CopyFromArena(const std::string& digest, const std::string& to, uint64_t most_bytes,
                                     Image& image, const std::stop_token& stop);
  void Learn(const LayerSource& source, const std::string& digest);

  StoreParts& parts_;
};

}  // namespace lamina::layers
