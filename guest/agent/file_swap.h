// Turns one folder's content into another's, so that readers and watchers see what the kubelet's atomic
// writer would show them.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::guest {

// Names in the folder, sorted, without "." and "..".
absl::StatusOr<std::vector<std::string>> NamesIn(int folder);

// Removes `name` in the folder with all that is in it; no link is followed. There is none: OK.
// InvalidArgument: deeper than 64 folders.
absl::Status RemoveTree(int folder, const std::string& name);

// `name` in the folder `current` becomes what `name` in the folder `next` is, on the same file system, which
// is used up by it. What is equal stays untouched, with its inode. New folders are made and filled first;
// then changed files are renamed over the old ones; then links are, "..data" before all others, and by way of
// "..data_tmp"; what is not wanted any more goes last, folders after `grace`, for those that are on their way
// into them. A volume that is a single file keeps its inode and is written in place: containers have it
// mounted. FailedPrecondition: a folder that was a file, or a file that was a folder. On error what was not
// yet changed stays as it was; done again, it goes on.
absl::Status SwapTree(int current, int next, const std::string& name, std::chrono::milliseconds grace);

}  // namespace lamina::guest
