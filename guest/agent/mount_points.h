// Both ends of a container's mounts, made safe and plain before crun makes them: it follows links in a
// source, and does not find its way through links to what is not there yet.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina::guest {

// Where `destination` leads in the root file system `rootfs`, whose links are followed as if it were "/":
// a path without links, whose last parts need not exist (what a link names is made, as runc does). What lies
// in one of `mounted` (earlier destinations, as answered) is left as it is from there on. InvalidArgument:
// not absolute; more than 255 links.
absl::StatusOr<std::string> ResolveDestination(const std::string& rootfs, std::string_view destination,
                                               const std::vector<std::string>& mounted);

struct MountPlaces {
  std::string rootfs;
  // Folders whose first level are volumes. What lies deeper is in the containers' hands.
  std::vector<std::string> volume_directories;
  std::string pins;  // a folder of the container's own; made when it is needed
};

// The spec (OCI config.json, as PrepareSpec gives it) with resolved destinations. A source inside a volume is
// looked up through no link and mounted at <pins>/<number>, which becomes the source. On error
// RemovePins is still due. FailedPrecondition: a link is in a source's way; NotFound: a source is missing.
absl::StatusOr<std::string> PlaceMounts(std::string_view config_json, const MountPlaces& places);

// Unmounts and removes what PlaceMounts made. Repeatable.
absl::Status RemovePins(const std::string& pins);

}  // namespace lamina::guest
