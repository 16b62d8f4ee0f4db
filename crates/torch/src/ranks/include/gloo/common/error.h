// `ProcessGroupGloo.hpp` includes this file and needs nothing of it.
#pragma once
