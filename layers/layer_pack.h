// Moves idle layers together, so that arenas become empty.
#pragma once

#include "absl/status/statusor.h"
#include "layers/store_parts.h"

namespace lamina::layers {

// The arenas that nobody uses, the emptiest first, where moving its layers to the other arenas of the domain
// empties it: fewer devices for the next pods. An arena is moved whole or not at all; a copy is checked
// before the old one goes, and who asks for the layer meanwhile waits for the end of its move. Thread-safe.
absl::StatusOr<PackResult> PackArenas(StoreParts& parts);

}  // namespace lamina::layers
