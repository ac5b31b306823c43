// The CPU's time stamp counter: what an emulated guest reads too.
#pragma once

#include <cstdint>

namespace lamina {

// Its ticks in a millisecond, to some millionths; measured once per process, in 10 ms. 0 when this host's
// kernel does not trust it to be steady.
uint32_t TscKhz();

}  // namespace lamina
