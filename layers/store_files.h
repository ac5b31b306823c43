// The store's directory at start: what the index names and what is there are made to agree.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/file_system.h"
#include "layers/arena_file.h"
#include "layers/layer_index.h"
#include "layers/layer_records.h"
#include "layers/layer_types.h"

namespace lamina::layers {

// Takes out of the index what has no file, and gives the store's own disks their path.
void ForgetMissing(FileSystem& fs, const StoreOptions& options, IndexContent& content);

// Removes what no record names: conversions cut off, arenas just made, what was dropped. Punches holes where
// no region is, which may fail: the log says so.
absl::Status ClearLeftovers(FileSystem& fs, ArenaFiles& arenas, const StoreOptions& options,
                            const LayerRecords& records);

}  // namespace lamina::layers
